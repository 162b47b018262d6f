#include <algorithm>

#include "kernels/cpu/cpu_ops.h"

namespace baton::kernels::cpu {

absl::Status MoePermute(Device& device, const MoePermuteArgs& args) {
  const int64_t pairs = args.experts.elements(), top_k = args.experts.dim(1);
  const int64_t experts = args.offsets.dim(0) - 1;
  const int32_t* ids = args.experts.as<const int32_t>();
  int32_t* offsets = args.offsets.as<int32_t>();
  int32_t* row_tokens = args.row_tokens.as<int32_t>();
  int32_t* rows = args.rows.as<int32_t>();
  const auto local = [&](int64_t pair) {
    const int64_t expert = int64_t{ids[pair]} - args.first_expert;
    return expert >= 0 && expert < experts ? expert : -1;
  };
  // A counting sort by expert, stable in the order of the pairs.
  std::fill(offsets, offsets + experts + 1, 0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    if (local(pair) >= 0) ++offsets[local(pair) + 1];
  }
  const int32_t room = static_cast<int32_t>(args.row_tokens.dim(0));
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  device.scratch().Reset();
  int32_t* next = device.scratch().Get<int32_t>(experts + 1);
  std::copy(offsets, offsets + experts + 1, next);
  std::fill(row_tokens, row_tokens + room, -1);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t expert = local(pair);
    const int32_t row = expert < 0 ? room : next[expert]++;
    rows[pair] = row < room ? row : -1;
    if (row < room) row_tokens[row] = static_cast<int32_t>(pair / top_k);
  }
  for (int64_t e = 0; e <= experts; ++e) offsets[e] = std::min(offsets[e], room);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
