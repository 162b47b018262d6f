#include "transport/nccl/nccl_status.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {

absl::Status NcclStatus(ncclResult_t result, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": ", ncclGetErrorString(result), " (", ncclGetLastError(nullptr), ")"));
}

absl::StatusOr<bool> NcclIsDone(ncclComm_t comm) {
  ncclResult_t result = ncclSuccess;
  BATON_RETURN_IF_ERROR(NcclStatus(ncclCommGetAsyncError(comm, &result), "ncclCommGetAsyncError"));
  BATON_RETURN_IF_ERROR(NcclStatus(result, "NCCL"));
  return result == ncclSuccess;
}

}  // namespace baton::transport
