#ifndef BATON_SERVER_RETRY_HINT_H_
#define BATON_SERVER_RETRY_HINT_H_

// Tells a client whose call fails when to try again, in both ways that clients look for: the
// trailing metadata "retry-after-ms", which a person can read, and google.rpc.RetryInfo in
// "grpc-status-details-bin", which client libraries read. Pure but for the call's metadata.

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "base/clock.h"

namespace baton::server {

// `status` for gRPC. `retry_after` > 0: with the hint, which is a millisecond at least.
grpc::Status ToGrpcWithHint(const absl::Status& status, Duration retry_after,
                            grpc::CallbackServerContext* call);

// The serialized google.rpc.Status of such a failure.
std::string RetryDetails(const absl::Status& status, Duration retry_after);

// How long a failed call's details say to wait; zero when they do not say.
Duration RetryAfter(const grpc::Status& status);

}  // namespace baton::server

#endif  // BATON_SERVER_RETRY_HINT_H_
