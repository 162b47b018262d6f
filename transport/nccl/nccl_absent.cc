// CreateNcclTransport of programs that do not link NCCL.

#include "transport/nccl/nccl_transport.h"

namespace baton::transport {

absl::StatusOr<std::unique_ptr<NcclTransport>> CreateNcclTransport(const NcclTransportOptions&,
                                                                   std::shared_ptr<Clock>) {
  return absl::FailedPreconditionError(
      "handoff.transport: nccl needs a binary with the CUDA backend, which this one is without; "
      "build the preset `cuda`, or set it to auto or ucx");
}

}  // namespace baton::transport
