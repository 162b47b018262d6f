#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "transport/group/buffer_ops.h"

namespace baton::transport {
namespace {

// Sums are made in blocks whose accumulators stay in the first cache level.
constexpr size_t kBlockElements = 1024;

float WidenBF16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// To nearest, ties to even; NaN stays NaN.
uint16_t NarrowBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Adds up `terms` (first to last, in float32) into `out`, which may be one of them.
void SumF32(std::span<const std::byte* const> terms, std::byte* out, size_t elements) {
  float sum[kBlockElements], term[kBlockElements];
  for (size_t at = 0; at < elements; at += kBlockElements) {
    const size_t count = std::min(kBlockElements, elements - at);
    std::memcpy(sum, terms[0] + at * 4, count * 4);
    for (const std::byte* next : terms.subspan(1)) {
      std::memcpy(term, next + at * 4, count * 4);
      for (size_t i = 0; i < count; ++i) sum[i] += term[i];
    }
    std::memcpy(out + at * 4, sum, count * 4);
  }
}

void SumBF16(std::span<const std::byte* const> terms, std::byte* out, size_t elements) {
  float sum[kBlockElements];
  uint16_t term[kBlockElements];
  for (size_t at = 0; at < elements; at += kBlockElements) {
    const size_t count = std::min(kBlockElements, elements - at);
    std::memcpy(term, terms[0] + at * 2, count * 2);
    for (size_t i = 0; i < count; ++i) sum[i] = WidenBF16(term[i]);
    for (const std::byte* next : terms.subspan(1)) {
      std::memcpy(term, next + at * 2, count * 2);
      for (size_t i = 0; i < count; ++i) sum[i] += WidenBF16(term[i]);
    }
    for (size_t i = 0; i < count; ++i) term[i] = NarrowBF16(sum[i]);
    std::memcpy(out + at * 2, term, count * 2);
  }
}

class HostBuffers final : public BufferOps {
 public:
  absl::Status Copy(std::span<std::byte> to, std::span<const std::byte> from) override {
    std::copy(from.begin(), from.end(), to.begin());
    return absl::OkStatus();
  }
  absl::Status Zero(std::span<std::byte> to) override {
    std::fill(to.begin(), to.end(), std::byte{0});
    return absl::OkStatus();
  }
  absl::Status Sum(ReduceType type, std::span<const std::byte* const> terms,
                   std::span<std::byte> out) override {
    if (type == ReduceType::kF32) {
      SumF32(terms, out.data(), out.size() / 4);
    } else {
      SumBF16(terms, out.data(), out.size() / 2);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::span<std::byte>> Scratch(size_t bytes) override {
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return std::span(scratch_).first(bytes);
  }

 private:
  std::vector<std::byte> scratch_;
};

}  // namespace

std::unique_ptr<BufferOps> MakeHostBuffers() { return std::make_unique<HostBuffers>(); }

}  // namespace baton::transport
