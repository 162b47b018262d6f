#include "tests/transport/child_transport.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {

std::unique_ptr<KvTransport> MakeChildTransport(const std::string& argument) {
  UcxOptions options;
  options.tls = argument;
  options.max_message_bytes = uint64_t{8} << 20;
  options.staging_bytes = uint64_t{16} << 20;
  return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).value();
}

}  // namespace baton::transport
