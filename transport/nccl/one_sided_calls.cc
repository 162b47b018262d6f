#include "transport/nccl/one_sided_calls.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/nccl/nccl_status.h"

namespace baton::transport {
namespace {

// Releases of which it is known what a put waits for, as ncclGetVersion gives them; NCCL's
// documentation does not say it.
constexpr int kFirstKnown = 23003, kBehindLastKnown = 23100;

template <typename Function>
absl::Status Find(const char* name, Function** out) {
  *out = reinterpret_cast<Function*>(FindNcclFunction(name));
  if (*out != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("NCCL has no ", name));
}

}  // namespace

absl::StatusOr<OneSidedCalls> FindOneSidedCalls() {
  int version = 0;
  BATON_RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&version), "ncclGetVersion"));
  if (version < kFirstKnown || version >= kBehindLastKnown) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL is of release ", version / 10000, ".", version / 100 % 100, ".",
                     version % 100, "; one-sided hand-offs are made with 2.30, from 2.30.3 on"));
  }
  OneSidedCalls calls;
  BATON_RETURN_IF_ERROR(Find("ncclMemAlloc", &calls.mem_alloc));
  BATON_RETURN_IF_ERROR(Find("ncclMemFree", &calls.mem_free));
  BATON_RETURN_IF_ERROR(Find("ncclCommWindowRegister", &calls.window_register));
  BATON_RETURN_IF_ERROR(Find("ncclGetPeerDevicePointer", &calls.peer_pointer));
  BATON_RETURN_IF_ERROR(Find("ncclSignal", &calls.signal));
  BATON_RETURN_IF_ERROR(Find("ncclPutSignal", &calls.put_signal));
  BATON_RETURN_IF_ERROR(Find("ncclWaitSignal", &calls.wait_signal));
  return calls;
}

}  // namespace baton::transport
