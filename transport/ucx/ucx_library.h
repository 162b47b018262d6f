#ifndef BATON_TRANSPORT_UCX_UCX_LIBRARY_H_
#define BATON_TRANSPORT_UCX_UCX_LIBRARY_H_

// UCX's context and worker as C++ values, and what has to be said to the library once per process.
// Included by transport/ucx/*.cc only.

#include <ucp/api/ucp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/ucx/ucx_address.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {

struct UcxContextDeleter {
  void operator()(ucp_context_h context) const { ucp_cleanup(context); }
};
struct UcxWorkerDeleter {
  void operator()(ucp_worker_h worker) const { ucp_worker_destroy(worker); }
};
using UcxContext = std::unique_ptr<ucp_context, UcxContextDeleter>;
using UcxWorker = std::unique_ptr<ucp_worker, UcxWorkerDeleter>;

// UNAVAILABLE (peer gone, unreachable), or INTERNAL for what should not happen; names `what` and
// UCX's own words.
absl::Status UcxStatus(ucs_status_t status, const char* what);

// The release that is loaded.
UcxVersion LoadedUcxVersion();

// The first call in a process takes UCX's signal handlers out (it installs some for SIGSEGV and
// others when it is loaded) and sends its messages to `options.log`'s sink, or to nobody.
absl::StatusOr<UcxContext> CreateUcxContext(const UcxOptions& options);
absl::StatusOr<UcxWorker> CreateUcxWorker(ucp_context_h context);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_UCX_UCX_LIBRARY_H_
