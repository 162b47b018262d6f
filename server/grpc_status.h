#ifndef BATON_SERVER_GRPC_STATUS_H_
#define BATON_SERVER_GRPC_STATUS_H_

// absl::Status <-> grpc::Status. The codes are the same numbers by design of both.

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace baton::server {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message().data(), status.message().size()));
}

inline absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace baton::server

#endif  // BATON_SERVER_GRPC_STATUS_H_
