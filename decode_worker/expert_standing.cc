#include "decode_worker/expert_standing.h"

#include "absl/strings/str_cat.h"
#include "base/byte_stream.h"
#include "base/check.h"

namespace baton::decode_worker {
namespace {

using scheduler::GroupView;

size_t Words(int32_t ranks) { return (static_cast<size_t>(ranks) + 63) / 64; }

void PutRanks(const std::vector<bool>& ranks, int32_t count, ByteWriter& out) {
  std::vector<uint64_t> words(Words(count));
  for (size_t r = 0; r < ranks.size(); ++r) {
    if (ranks[r]) words[r / 64] |= uint64_t{1} << (r % 64);
  }
  for (const uint64_t word : words) out.Put(word);
}

std::vector<bool> TakeRanks(ByteReader& in, int32_t count) {
  std::vector<bool> ranks(static_cast<size_t>(count));
  for (size_t at = 0; at < Words(count); ++at) {
    const uint64_t word = in.Take<uint64_t>();
    for (size_t bit = 0; bit < 64 && at * 64 + bit < ranks.size(); ++bit) {
      ranks[at * 64 + bit] = (word >> bit & 1) != 0;
    }
  }
  return ranks;
}

void PutView(const GroupView& view, int32_t ranks, ByteWriter& out) {
  out.Put(view.generation);
  out.Put(static_cast<int64_t>(view.first));
  PutRanks(view.members, ranks, out);
}

GroupView TakeView(ByteReader& in, int32_t ranks) {
  GroupView view;
  view.generation = in.Take<uint64_t>();
  view.first = static_cast<int32_t>(in.Take<int64_t>());
  view.members = TakeRanks(in, ranks);
  return view;
}

bool IsView(const GroupView& view) {
  return view.generation > 0 && view.first >= 0 &&
         static_cast<size_t>(view.first) < view.members.size();
}

}  // namespace

size_t StandingBytes(int32_t ranks) {
  const size_t view = 2 + Words(ranks);
  return 8 * (6 + (1 + kMaxEntered) * view + Words(ranks));
}

std::vector<std::byte> EncodeStanding(const Standing& standing, int32_t ranks) {
  const std::vector<GroupView>& entered = standing.history.entered;
  BATON_CHECK(entered.size() <= kMaxEntered);
  ByteWriter out;
  out.Put(standing.state.active);
  out.Put(standing.state.preparing);
  out.Put(uint64_t{standing.state.prepared});
  out.Put(standing.step);
  out.Put(uint64_t{standing.has_slots});
  out.Put(uint64_t{entered.size()});
  PutRanks(standing.history.ended, ranks, out);
  PutView(standing.history.established, ranks, out);
  for (const GroupView& view : entered) PutView(view, ranks, out);
  std::vector<std::byte> bytes = out.Take();
  bytes.resize(StandingBytes(ranks));
  return bytes;
}

absl::StatusOr<Standing> DecodeStanding(std::span<const std::byte> bytes, int32_t ranks) {
  BATON_CHECK_EQ(bytes.size(), StandingBytes(ranks));
  ByteReader in(bytes);
  Standing standing;
  standing.state.active = in.Take<uint64_t>();
  standing.state.preparing = in.Take<uint64_t>();
  standing.state.prepared = in.Take<uint64_t>() != 0;
  standing.step = in.Take<uint64_t>();
  standing.has_slots = in.Take<uint64_t>() != 0;
  const uint64_t entered = in.Take<uint64_t>();
  standing.history.ended = TakeRanks(in, ranks);
  standing.history.established = TakeView(in, ranks);
  bool is_good = entered <= kMaxEntered;
  for (uint64_t i = 0; is_good && i < entered; ++i) {
    standing.history.entered.push_back(TakeView(in, ranks));
    is_good = IsView(standing.history.entered.back());
  }
  if (is_good && (!standing.has_slots || IsView(standing.history.established))) return standing;
  return absl::InternalError(absl::StrCat("a rank says that it has entered ", entered,
                                          " groups, the last known one of generation ",
                                          standing.history.established.generation));
}

}  // namespace baton::decode_worker
