#ifndef BATON_TRANSPORT_GPU_PLACE_H_
#define BATON_TRANSPORT_GPU_PLACE_H_

// A GPU as a place where a rank computes and exchanges data with other ranks: one queue of work for
// both, and one order of the host's calls that give it work of NCCL. It outlives what computes
// there, the groups that the rank is in and its hand-offs.
//
// A rank's group and its hand-offs have communicators of their own. What has been launched for one
// may wait for what is not launched yet for another, or finds no room on a GPU, and then none of
// them ends. What is kept so that this cannot be:
//   1. A launch waits for no GPU and no other rank (nccl_exchange.h, nccl_engine.h), so that what
//      a peer waits for is launched in the end.
//   2. A send is launched behind its receive, so it waits for nobody once it runs. A prefill GPU
//      therefore needs room for one operation at a time, in any order.
//   3. A decode GPU has room for a receive of each of max_concurrent_transfers senders beside one
//      call of its group: receives wait for prefill groups, which must not wait for the receiver's.
//   4. No rank has its GPU in common with another one: their groups would need room for each other.
// Orders may differ from rank to rank. One order on all of them, as NCCL_LAUNCH_ORDER_IMPLICIT
// wants it, is nobody's to give: the ranks of a group do not hand over at the same moments.

#include <memory>
#include <mutex>

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
  // Held around calls that launch NCCL's work here: NcclTransportOptions::launches.
  virtual std::shared_ptr<std::mutex> launches() const = 0;
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
