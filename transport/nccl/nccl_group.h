#ifndef BATON_TRANSPORT_NCCL_NCCL_GROUP_H_
#define BATON_TRANSPORT_NCCL_NCCL_GROUP_H_

// Groups of processes (group/tcp_rendezvous.h) that exchange data of their GPUs' memory as well, by
// NCCL. A Collectives of such a group takes the host's memory, as any; its ForDevice() takes memory
// of its rank's GPU, and its calls have their places in the stream.

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/ucx/ucx_group.h"

namespace baton::transport {

// Enqueues BufferOps::Sum on the stream: kernels are not this folder's.
using SumOnGpu = std::function<cudaError_t(ReduceType type, std::span<const std::byte* const> terms,
                                           std::span<std::byte> out, cudaStream_t stream)>;

struct NcclGroupOptions {
  // How the ranks' hosts find each other and agree on calls.
  UcxGroupOptions hosts;
  int gpu = 0;                    // of this rank
  cudaStream_t stream = nullptr;  // that its ops run on; outlives the groups
  SumOnGpu sum;                   // empty: ForDevice()->AllReduceSum is UNIMPLEMENTED
  // As NcclTransportOptions::launches: one for both, where the rank hands over by NCCL too.
  std::shared_ptr<std::mutex> launches;
};

absl::StatusOr<std::unique_ptr<TcpRendezvous>> CreateNcclRendezvous(const NcclGroupOptions& options,
                                                                    std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_GROUP_H_
