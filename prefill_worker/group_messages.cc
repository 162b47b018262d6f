#include "prefill_worker/group_messages.h"

#include <string>
#include <utility>

#include "base/byte_stream.h"

namespace baton::prefill_worker {
namespace {

using scheduler::AbortHandoff;
using scheduler::HandoffFinished;
using scheduler::HandoffSlice;
using scheduler::OpenHandoff;
using scheduler::RunPrefillPass;
using scheduler::SequenceSlice;

enum class Step : uint8_t { kOpen, kAbort, kPass, kStop, kEnd };

void PutPages(ByteWriter& out, std::span<const PageId> pages) { out.PutAll(pages); }

void Put(ByteWriter& out, const OpenHandoff& open) {
  out.Put(Step::kOpen);
  out.Put(open.key);
  out.Put(open.landing.epoch);
  out.PutString(open.landing.transport_address);
  out.Put(open.landing.first_page);
  PutPages(out, open.landing.pages);
}

void Put(ByteWriter& out, const AbortHandoff& abort) {
  out.Put(Step::kAbort);
  out.Put(abort.key);
}

void Put(ByteWriter& out, const RunPrefillPass& pass) {
  out.Put(Step::kPass);
  out.Put(pass.plan.step);
  out.Put(pass.plan.form);
  out.Put(pass.plan.total_rows);
  out.Put(static_cast<uint32_t>(pass.plan.slices.size()));
  for (const SequenceSlice& slice : pass.plan.slices) {
    out.Put(slice.key);
    out.Put(slice.prompt_tokens);
    out.Put(slice.first_position);
    out.PutAll(slice.sequence.subspan(static_cast<size_t>(slice.first_position),
                                      static_cast<size_t>(slice.row_count)));
    PutPages(out, slice.pages);
    out.Put(static_cast<uint8_t>(slice.sample));
  }
  out.Put(static_cast<uint32_t>(pass.handoffs.size()));
  for (const HandoffSlice& slice : pass.handoffs) {
    out.Put(slice.key);
    out.Put(slice.first_page);
    PutPages(out, slice.pages);
    out.Put(slice.token_count);
    out.Put(static_cast<uint8_t>(slice.last));
  }
}

OpenHandoff TakeOpen(ByteReader& in) {
  OpenHandoff open;
  open.key = in.Take<RequestKey>();
  open.landing.epoch = in.Take<Epoch>();
  open.landing.transport_address = in.TakeString();
  open.landing.first_page = in.Take<int32_t>();
  open.landing.pages = in.TakeAll<PageId>();
  return open;
}

FollowerPass TakePass(ByteReader& in) {
  static const scheduler::SamplingParams kNoSampling;
  FollowerPass result;
  scheduler::BatchPlan& plan = result.pass.plan;
  plan.step = in.Take<uint64_t>();
  plan.form = in.Take<scheduler::Form>();
  plan.total_rows = in.Take<int32_t>();
  for (uint32_t left = in.Take<uint32_t>(); left > 0 && in.ok(); --left) {
    SequenceSlice slice;
    slice.key = in.Take<RequestKey>();
    slice.prompt_tokens = in.Take<int32_t>();
    slice.first_position = in.Take<int32_t>();
    const std::vector<TokenId> rows = in.TakeAll<TokenId>();
    result.pages.push_back(in.TakeAll<PageId>());
    slice.sample = in.Take<uint8_t>() != 0;
    if (!in.ok() || slice.first_position < 0) break;
    slice.row_count = static_cast<int32_t>(rows.size());
    result.tokens.emplace_back(static_cast<size_t>(slice.first_position), TokenId{0});
    result.tokens.back().insert(result.tokens.back().end(), rows.begin(), rows.end());
    slice.sequence = result.tokens.back();  // the heap block stays where it is
    slice.pages = result.pages.back();
    slice.sampling = &kNoSampling;
    plan.slices.push_back(slice);
  }
  for (uint32_t left = in.Take<uint32_t>(); left > 0 && in.ok(); --left) {
    HandoffSlice slice;
    slice.key = in.Take<RequestKey>();
    slice.first_page = in.Take<uint32_t>();
    slice.pages = in.TakeAll<PageId>();
    slice.token_count = in.Take<uint32_t>();
    slice.last = in.Take<uint8_t>() != 0;
    result.pass.handoffs.push_back(std::move(slice));
  }
  return result;
}

}  // namespace

std::vector<std::byte> EncodeCommand(const GroupCommand& command) {
  ByteWriter out;
  for (const auto& handoff : command.handoffs) {
    std::visit([&out](const auto& step) { Put(out, step); }, handoff);
  }
  if (command.pass != nullptr) Put(out, *command.pass);
  if (command.stop) out.Put(Step::kStop);
  out.Put(Step::kEnd);
  return out.Take();
}

absl::StatusOr<FollowerCommand> DecodeCommand(std::span<const std::byte> bytes) {
  FollowerCommand command;
  ByteReader in(bytes);
  while (in.ok()) {
    const Step step = in.Take<Step>();
    if (!in.ok() || step == Step::kEnd) break;
    switch (step) {
      case Step::kOpen:
        command.handoffs.emplace_back(TakeOpen(in));
        continue;
      case Step::kAbort:
        command.handoffs.emplace_back(AbortHandoff{in.Take<RequestKey>()});
        continue;
      case Step::kPass:
        command.pass = TakePass(in);
        continue;
      case Step::kStop:
        command.stop = true;
        continue;
      case Step::kEnd:
        break;
    }
    return absl::InternalError("the leader of the prefill group sent an unknown command");
  }
  if (!in.done()) return absl::InternalError("the leader of the prefill group sent a cut command");
  return command;
}

std::vector<std::byte> EncodeResults(std::span<const HandoffFinished> results) {
  ByteWriter out;
  for (const HandoffFinished& result : results) {
    out.Put(result.key);
    out.Put(static_cast<int32_t>(result.status.code()));
    out.PutString(std::string_view(result.status.message().data(), result.status.message().size()));
    out.Put(result.messages_posted);
    out.Put(result.bytes_posted);
  }
  return out.Take();
}

absl::StatusOr<std::vector<HandoffFinished>> DecodeResults(std::span<const std::byte> bytes) {
  std::vector<HandoffFinished> results;
  ByteReader in(bytes);
  while (in.ok() && !in.done()) {
    HandoffFinished result;
    result.key = in.Take<RequestKey>();
    const int32_t code = in.Take<int32_t>();
    const std::string message = in.TakeString();
    if (code != 0) result.status = absl::Status(static_cast<absl::StatusCode>(code), message);
    result.messages_posted = in.Take<uint32_t>();
    result.bytes_posted = in.Take<uint64_t>();
    results.push_back(std::move(result));
  }
  if (!in.done()) return absl::InternalError("a rank of the prefill group sent a cut report");
  return results;
}

}  // namespace baton::prefill_worker
