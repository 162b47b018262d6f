// Runs the conformance tests on each transport between endpoints of this process.

#include "tests/transport/conformance.h"
#include "transport/inproc/inproc_transport.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {
namespace {

class InprocTestFabric : public TestFabric {
 public:
  std::unique_ptr<KvTransport> NewEndpoint() override {
    return fabric_.NewEndpoint("test", {.max_message_bytes = kTestMaxMessageBytes,
                                        .staging_bytes = kTestStagingBytes,
                                        .max_posts_in_flight = kTestMaxPosts});
  }

 private:
  InprocFabric fabric_;
};

class UcxTestFabric : public TestFabric {
 public:
  explicit UcxTestFabric(std::string tls) : tls_(std::move(tls)) {}
  std::unique_ptr<KvTransport> NewEndpoint() override {
    UcxOptions options;
    options.tls = tls_;
    options.max_message_bytes = kTestMaxMessageBytes;
    options.staging_bytes = kTestStagingBytes;
    options.max_posts_in_flight = kTestMaxPosts;
    options.keepalive_interval = Duration::Millis(100);
    return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).value();
  }

 private:
  const std::string tls_;
};

template <typename Fabric, typename... Args>
ConformanceParam Param(std::string name, Args... args) {
  return {name, [args...] { return std::make_unique<Fabric>(args...); }};
}

INSTANTIATE_TEST_SUITE_P(Transports, KvTransportConformance,
                         testing::Values(Param<InprocTestFabric>("inproc"),
                                         Param<UcxTestFabric>("ucx_shm", "posix,tcp"),

                                         Param<UcxTestFabric>("ucx_tcp", "tcp"),
                                         Param<UcxTestFabric>("ucx", UcxOptions().tls)),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace baton::transport
