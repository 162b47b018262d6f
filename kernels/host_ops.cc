#include "kernels/host_ops.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace baton::kernels {

absl::StatusOr<DeviceBuffer> HostAllocate(Device&, size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (rounded < bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes"));
  }
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes"));
  }
  return DeviceBuffer(data, bytes, [](void* p) { std::free(p); });
}

absl::Status HostCopyToDevice(Device&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status HostCopyToHost(Device&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status HostSynchronize(Device&) { return absl::OkStatus(); }

absl::Status HostMoePermute(Device& device, const MoePermuteArgs& args) {
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
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  device.scratch().Reset();
  int32_t* next = device.scratch().Get<int32_t>(experts + 1);
  std::copy(offsets, offsets + experts + 1, next);
  std::fill(row_tokens, row_tokens + pairs, -1);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t expert = local(pair);
    rows[pair] = expert < 0 ? -1 : next[expert]++;
    if (expert >= 0) row_tokens[rows[pair]] = static_cast<int32_t>(pair / top_k);
  }
  return absl::OkStatus();
}

absl::Status HostLogitsMask(Device&, const LogitsMaskArgs& args) {
  for (int64_t t = 0; t < args.logits.dim(0); ++t) {
    float* logits = args.logits.row<float>(t);
    const uint32_t* mask = args.mask.row<const uint32_t>(t);
    for (int64_t i = 0; i < args.logits.dim(1); ++i) {
      if ((mask[i / 32] >> (i % 32) & 1u) == 0) logits[i] = -std::numeric_limits<float>::infinity();
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels
