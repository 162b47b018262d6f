#ifndef BATON_TRANSPORT_NCCL_NCCL_STATUS_H_
#define BATON_TRANSPORT_NCCL_NCCL_STATUS_H_

#include <nccl.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton::transport {

// OK while NCCL is still at it, too; else INTERNAL with `what` and NCCL's own words.
absl::Status NcclStatus(ncclResult_t result, const char* what);

// Whether NCCL is through with all that was begun on a communicator; INTERNAL where it failed.
absl::StatusOr<bool> NcclIsDone(ncclComm_t comm);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_STATUS_H_
