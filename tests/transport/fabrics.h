#ifndef BATON_TESTS_TRANSPORT_FABRICS_H_
#define BATON_TESTS_TRANSPORT_FABRICS_H_

// The fabrics that the conformance tests run on.

#include <memory>
#include <string>

#include "tests/transport/conformance.h"
#include "transport/faulty/faulty_transport.h"
#include "transport/inproc/inproc_transport.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {

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

// Another fabric's endpoints behind a decorator that does nothing.
template <typename Fabric>
class HarmlessFaultyFabric : public Fabric {
 public:
  using Fabric::Fabric;
  std::unique_ptr<KvTransport> NewEndpoint() override {
    return std::make_unique<FaultyTransport>(Fabric::NewEndpoint(), FaultyOptions());
  }
};

template <typename Fabric, typename... Args>
ConformanceParam FabricParam(std::string name, Args... args) {
  return {name, [args...] { return std::make_unique<Fabric>(args...); }};
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_FABRICS_H_
