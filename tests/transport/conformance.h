#ifndef BATON_TESTS_TRANSPORT_CONFORMANCE_H_
#define BATON_TESTS_TRANSPORT_CONFORMANCE_H_

// The tests that every KvTransport passes: instantiate KvTransportConformance with a fabric.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "transport/kv_transport.h"

namespace baton::transport {

// What the endpoints under test are made with.
inline constexpr uint64_t kTestMaxMessageBytes = uint64_t{8} << 20;
inline constexpr uint64_t kTestStagingBytes = uint64_t{16} << 20;
inline constexpr uint32_t kTestMaxPosts = 32;

class TestFabric {
 public:
  virtual ~TestFabric() = default;
  virtual std::unique_ptr<KvTransport> NewEndpoint() = 0;
};

struct ConformanceParam {
  std::string name;
  std::function<std::unique_ptr<TestFabric>()> make;
  friend std::ostream& operator<<(std::ostream& out, const ConformanceParam& p) {
    return out << p.name;
  }
};

class KvTransportConformance : public testing::TestWithParam<ConformanceParam> {
 protected:
  void SetUp() override { fabric_ = GetParam().make(); }
  std::unique_ptr<TestFabric> fabric_;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_CONFORMANCE_H_
