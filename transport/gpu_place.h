#ifndef BATON_TRANSPORT_GPU_PLACE_H_
#define BATON_TRANSPORT_GPU_PLACE_H_

// A GPU as a place where a rank computes and exchanges data with other ranks: one queue of work for
// both. It outlives what computes there and the groups that the rank is in.

#include <memory>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/group/tcp_rendezvous.h"
#include "transport/ucx/ucx_group.h"

namespace baton::transport {

class GpuPlace {
 public:
  virtual ~GpuPlace() = default;
  virtual int gpu() const = 0;
  // The queue, for kernels::DeviceOptions::queue: a cudaStream_t.
  virtual void* queue() const = 0;
  // Groups whose ranks exchange the memory of their GPUs too (Collectives::ForDevice), each rank
  // with a GPU of its own. Errors are CreateUcxRendezvous's.
  virtual absl::StatusOr<std::unique_ptr<TcpRendezvous>> NewRendezvous(
      const UcxGroupOptions& hosts, std::shared_ptr<Clock> clock) = 0;
};

// GPUs that this process sees; 0 without a driver, and in programs without NCCL.
int CountGpus();

// Which of its definitions a program gets is chosen by what it links (transport/CMakeLists.txt):
// NCCL's, or gpu_place_absent.cc, which is FAILED_PRECONDITION. INVALID_ARGUMENT for a GPU that is
// not there.
absl::StatusOr<std::unique_ptr<GpuPlace>> CreateGpuPlace(int gpu);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GPU_PLACE_H_
