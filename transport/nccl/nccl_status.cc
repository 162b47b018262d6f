#include "transport/nccl/nccl_status.h"

#include "absl/strings/str_cat.h"

namespace baton::transport {

absl::Status NcclStatus(ncclResult_t result, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": ", ncclGetErrorString(result), " (", ncclGetLastError(nullptr), ")"));
}

}  // namespace baton::transport
