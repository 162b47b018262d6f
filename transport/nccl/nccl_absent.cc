// CreateNcclTransport of programs that do not link NCCL.

#include "transport/nccl/nccl_transport.h"

namespace baton::transport {

absl::StatusOr<std::unique_ptr<NcclTransport>> CreateNcclTransport(const NcclTransportOptions&,
                                                                   std::shared_ptr<Clock>) {
  return absl::FailedPreconditionError(
      "this binary was built without the CUDA backend, which hand-offs over nccl belong to; build "
      "the preset `cuda` (cmake --preset cuda && cmake --build --preset cuda), or set the backend "
      "to cpu and handoff.transport to auto");
}

}  // namespace baton::transport
