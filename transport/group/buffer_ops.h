#ifndef BATON_TRANSPORT_GROUP_BUFFER_OPS_H_
#define BATON_TRANSPORT_GROUP_BUFFER_OPS_H_

// What a rank does with the buffers of collectives besides sending them: in the host's memory, or
// in a GPU's (nccl/cuda_buffers.h). One thread, that of the calls.

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/collectives.h"

namespace baton::transport {

class BufferOps {
 public:
  virtual ~BufferOps() = default;
  // `to` and `from` are of one size and do not overlap. Ordered before the next Exchange::Run.
  virtual absl::Status Copy(std::span<std::byte> to, std::span<const std::byte> from) = 0;
  virtual absl::Status Zero(std::span<std::byte> to) = 0;
  // out = terms[0] + terms[1] + ... in float32, in this order, rounded once to the element type
  // (to nearest, ties to even). Each term is as long as `out`, which may be one of them. Ordered as
  // Copy.
  virtual absl::Status Sum(ReduceType type, std::span<const std::byte* const> terms,
                           std::span<std::byte> out) = 0;
  // The same memory again and again, grown where it is too small.
  virtual absl::StatusOr<std::span<std::byte>> Scratch(size_t bytes) = 0;
};

// Of the host's memory.
std::unique_ptr<BufferOps> MakeHostBuffers();

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_BUFFER_OPS_H_
