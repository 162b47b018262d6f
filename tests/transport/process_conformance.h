#ifndef BATON_TESTS_TRANSPORT_PROCESS_CONFORMANCE_H_
#define BATON_TESTS_TRANSPORT_PROCESS_CONFORMANCE_H_

// What every KvTransport between processes does when peers are killed, stopped and started again:
// instantiate KvTransportProcesses with a child program and what makes this side's endpoint.

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tests/transport/child_process.h"
#include "tests/transport/hex.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {

// What the endpoints are made with.
inline constexpr size_t kProcessMaxBytes = size_t{8} << 20;
inline constexpr uint64_t kProcessStagingBytes = uint64_t{16} << 20;
inline constexpr uint32_t kProcessMaxPosts = 32;
inline constexpr Duration kProcessStallTimeout = Duration::Millis(1500);

struct ProcessParam {
  std::string name;
  std::string program;   // transport_child, or one like it
  std::string argument;  // for both
  std::function<std::unique_ptr<KvTransport>(const std::string& argument)> make;
  std::function<uint64_t(KvTransport&)> staging_in_use;
};

class KvTransportProcesses : public testing::TestWithParam<ProcessParam> {
 protected:
  KvTransportProcesses()
      : peer_(GetParam().make(GetParam().argument), &bell_),
        memory_(&peer_.transport(), kProcessMaxBytes, 1) {}

  std::unique_ptr<ChildProcess> Start(const std::string& mode) {
    auto child = std::make_unique<ChildProcess>(
        BATON_BINARY_DIR "/tests/transport/" + GetParam().program,
        std::vector<std::string>{mode, GetParam().argument, ToHex(peer_.transport().address())});
    child_address_ = FromHex(child->ReadLine());
    return child;
  }

  absl::Status Post(TransferId transfer, uint64_t id, size_t bytes) {
    const auto payload = memory_.Part(0, bytes);
    KvMessageHeader header = TestHeader(id, payload);
    auto [known, is_new] = checksums_.try_emplace(bytes);
    if (is_new) known->second = Checksum(payload);
    header.checksum = known->second;
    return peer_.transport().Post(transfer, id, header, payload);
  }

  bool Poll(const std::function<bool()>& done) { return PollUntil({&peer_}, done); }

  // Posts one message to a fresh echo child and waits for its answer.
  void ExpectWorks() {
    auto child = Start("echo");
    const TransferId transfer = peer_.transport().Prepare(child_address_).value();
    const size_t before = peer_.Count(KvEventKind::kNotified);
    ASSERT_TRUE(Post(transfer, 1, 100'000).ok());
    EXPECT_TRUE(Poll([&] { return peer_.Count(KvEventKind::kNotified) == before + 1; }));
    peer_.transport().Release(transfer);
    EXPECT_TRUE(Poll([&] { return peer_.Count(KvEventKind::kReleased, transfer) == 1; }));
    EXPECT_EQ(child->Finish(), 0);
  }

  Bell bell_;
  TestPeer peer_;
  TestMemory memory_;
  std::map<size_t, uint64_t> checksums_;  // of the first bytes of memory_
  std::string child_address_;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_PROCESS_CONFORMANCE_H_
