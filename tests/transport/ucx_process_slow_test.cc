// UCX between processes.

#include "tests/transport/process_conformance.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {
namespace {

std::unique_ptr<KvTransport> NewEndpoint(const std::string& tls) {
  UcxOptions options;
  options.tls = tls;
  options.max_message_bytes = kProcessMaxBytes;
  options.staging_bytes = kProcessStagingBytes;
  options.max_posts_in_flight = kProcessMaxPosts;
  options.keepalive_interval = Duration::Millis(200);
  options.stall_timeout = kProcessStallTimeout;
  return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).value();
}

ProcessParam Param(const std::string& name, const std::string& tls) {
  return {name, "transport_child", tls, NewEndpoint, [](KvTransport& transport) {
            return static_cast<UcxTransport&>(transport).staging_in_use_bytes();
          }};
}

INSTANTIATE_TEST_SUITE_P(Ucx, KvTransportProcesses,
                         testing::Values(Param("sysv_tcp", "sysv,tcp"), Param("tcp", "tcp")),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
