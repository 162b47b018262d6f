#include "server/retry_hint.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/baton/v1/error_details.pb.h"
#include "server/completion_service.h"
#include "server/grpc_status.h"

namespace baton::server {
namespace {

constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr int64_t kNanosPerSecond = 1'000'000'000;

}  // namespace

std::string RetryDetails(const absl::Status& status, Duration retry_after) {
  v1::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(retry_after.nanos() / kNanosPerSecond);
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(retry_after.nanos() % kNanosPerSecond));
  v1::ErrorStatus details;
  details.set_code(static_cast<int32_t>(status.code()));
  details.set_message(status.message().data(), status.message().size());
  google::protobuf::Any* any = details.add_details();
  any->set_type_url(kRetryInfoUrl);
  any->set_value(info.SerializeAsString());
  return details.SerializeAsString();
}

grpc::Status ToGrpcWithHint(const absl::Status& status, Duration retry_after,
                            grpc::CallbackServerContext* call) {
  const grpc::Status plain = ToGrpc(status);
  if (status.ok() || retry_after <= Duration()) return plain;
  retry_after = std::max(retry_after, Duration::Millis(1));
  call->AddTrailingMetadata(kRetryAfterKey, absl::StrCat(retry_after.millis()));
  return grpc::Status(plain.error_code(), plain.error_message(), RetryDetails(status, retry_after));
}

Duration RetryAfter(const grpc::Status& status) {
  v1::ErrorStatus details;
  if (!details.ParseFromString(status.error_details())) return Duration();
  for (const google::protobuf::Any& any : details.details()) {
    v1::RetryInfo info;
    if (any.type_url() == kRetryInfoUrl && info.ParseFromString(any.value())) {
      return Duration::Seconds(info.retry_delay().seconds()) +
             Duration::Nanos(info.retry_delay().nanos());
    }
  }
  return Duration();
}

}  // namespace baton::server
