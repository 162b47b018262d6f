// Data over the emulated NCCL, on the process's own GPU.

#include "tests/transport/child_rendezvous.h"
#include "tests/transport/nccl_fabric.h"

namespace baton::transport {

std::unique_ptr<Rendezvous> MakeChildRendezvous(const UcxGroupOptions& options) {
  const auto gpu = std::make_shared<TestGpu>(0);
  NcclGroupOptions nccl;
  nccl.hosts = options;
  nccl.gpu = gpu->gpu();
  nccl.stream = gpu->stream();
  nccl.sum = SumByKernel;
  return std::make_unique<StagedRendezvous>(
      CreateNcclRendezvous(nccl, std::make_shared<MonotonicClock>()).value(), gpu);
}

}  // namespace baton::transport
