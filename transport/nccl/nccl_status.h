#ifndef BATON_TRANSPORT_NCCL_NCCL_STATUS_H_
#define BATON_TRANSPORT_NCCL_NCCL_STATUS_H_

#include <nccl.h>

#include "absl/status/status.h"

namespace baton::transport {

// OK while NCCL is still at it, too; else INTERNAL with `what` and NCCL's own words.
absl::Status NcclStatus(ncclResult_t result, const char* what);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_STATUS_H_
