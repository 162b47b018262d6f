#include "decode_worker/expert_messages.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::decode_worker {
namespace {

using scheduler::AbortPrepare;
using scheduler::ActiveExperts;
using scheduler::ExpertCopy;
using scheduler::ExpertPlacement;
using scheduler::ExpertTopology;
using scheduler::PrepareEnded;
using scheduler::PrepareExperts;

// The place of each in ExpertMessage.
enum class Kind : uint8_t { kPrepare, kEnded, kAbort, kAsk, kForm };

void Put(const PrepareExperts& message, ByteWriter& out) {
  out.Put(message.leader);
  PutActive(message.target, out);
  out.PutAll(std::span<const ExpertCopy>(message.copies));
}
void Put(const PrepareEnded& message, ByteWriter& out) {
  out.Put(message.rank);
  out.Put(message.version);
  out.Put(static_cast<int32_t>(message.status.code()));
  out.PutString(std::string_view(message.status.message().data(), message.status.message().size()));
}
void Put(const AbortPrepare& message, ByteWriter& out) { out.Put(message.version); }
void Put(const AskRebalance&, ByteWriter&) {}
void Put(const FormAnew& message, ByteWriter& out) {
  out.PutAll(std::span<const int>(message.returned));
}

absl::StatusOr<ExpertMessage> TakeMessage(ByteReader& in, const ExpertTopology& topology) {
  const Kind kind = in.Take<Kind>();
  switch (kind) {
    case Kind::kPrepare: {
      PrepareExperts message;
      message.leader = in.Take<int32_t>();
      BATON_ASSIGN_OR_RETURN(message.target, TakeActive(in, topology));
      message.copies = in.TakeAll<ExpertCopy>();
      for (const ExpertCopy& copy : message.copies) {
        if (copy.layer >= 0 && copy.layer < topology.layers && copy.expert >= 0 &&
            copy.expert < topology.experts) {
          continue;
        }
        return absl::InternalError(absl::StrCat("a copy of expert ", copy.expert, " of layer ",
                                                copy.layer, ", which the model does not have"));
      }
      return message;
    }
    case Kind::kEnded: {
      PrepareEnded message;
      message.rank = in.Take<int32_t>();
      message.version = in.Take<uint64_t>();
      const int32_t code = in.Take<int32_t>();
      const std::string text = in.TakeString();
      if (code != 0) message.status = absl::Status(static_cast<absl::StatusCode>(code), text);
      return message;
    }
    case Kind::kAbort:
      return AbortPrepare{in.Take<uint64_t>()};
    case Kind::kAsk:
      return AskRebalance{};
    case Kind::kForm:
      return FormAnew{in.TakeAll<int>()};
  }
  return absl::InternalError("a message of an unknown kind");
}

}  // namespace

void PutActive(const ActiveExperts& active, ByteWriter& out) {
  out.Put(active.version);
  std::vector<uint8_t> live(active.live.begin(), active.live.end());
  out.PutAll(std::span<const uint8_t>(live));
  std::vector<int32_t> slots;
  for (int32_t layer = 0; layer < active.placement->layers(); ++layer) {
    const std::span<const int32_t> of_layer = active.placement->Slots(layer);
    slots.insert(slots.end(), of_layer.begin(), of_layer.end());
  }
  out.PutAll(std::span<const int32_t>(slots));
}

absl::StatusOr<ActiveExperts> TakeActive(ByteReader& in, const ExpertTopology& topology) {
  ActiveExperts active;
  active.version = in.Take<uint64_t>();
  const std::vector<uint8_t> live = in.TakeAll<uint8_t>();
  if (live.size() != static_cast<size_t>(topology.ranks)) {
    return absl::InternalError(
        absl::StrCat("a placement with ", live.size(), " ranks, expected ", topology.ranks));
  }
  for (const uint8_t is_live : live) active.live.push_back(is_live != 0);
  absl::StatusOr<ExpertPlacement> placement =
      ExpertPlacement::FromSlots(topology, in.TakeAll<int32_t>());
  if (!placement.ok()) return absl::InternalError(placement.status().message());
  active.placement = std::make_shared<const ExpertPlacement>(*std::move(placement));
  return active;
}

void PutMessage(const ExpertMessage& message, std::vector<std::byte>& mail) {
  ByteWriter out;
  out.Put(static_cast<Kind>(message.index()));
  std::visit([&out](const auto& m) { Put(m, out); }, message);
  const std::vector<std::byte> bytes = out.Take();
  mail.insert(mail.end(), bytes.begin(), bytes.end());
}

absl::StatusOr<std::vector<ExpertMessage>> TakeMessages(std::span<const std::byte> mail,
                                                        const ExpertTopology& topology) {
  std::vector<ExpertMessage> messages;
  ByteReader in(mail);
  while (in.ok() && !in.done()) {
    BATON_ASSIGN_OR_RETURN(ExpertMessage message, TakeMessage(in, topology));
    messages.push_back(std::move(message));
  }
  if (!in.ok()) return absl::InternalError("a message that is cut off");
  return messages;
}

}  // namespace baton::decode_worker
