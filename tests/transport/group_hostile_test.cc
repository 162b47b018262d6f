// What does not come from a well-behaved rank: strangers and damaged messages at the port where a
// group meets, and ranks that break off halfway.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "base/random.h"
#include "tests/transport/group_fabrics.h"
#include "tests/transport/literal_collectives.h"
#include "tests/transport/stranger.h"
#include "transport/group/formation.h"

namespace baton::transport {
namespace {

using testing::HasSubstr;

// Of a rank of another group: however it is damaged, no rank of ours may come of it.
std::string GoodJoin() {
  JoinMessage message{.options = TestGroup(2, 1), .address = "127.0.0.1:1"};
  message.options.group_id = "another one";
  return EncodeJoin(message);
}

TEST(GroupHandshake, JoinRoundTripsAndRefusesDamage) {
  const std::string good = GoodJoin();
  const JoinMessage back = DecodeJoin(good).value();
  EXPECT_EQ(back.options.group_id, "another one");
  EXPECT_EQ(back.options.rank, 1);
  EXPECT_EQ(back.options.model_hash, "m1");
  EXPECT_EQ(back.address, "127.0.0.1:1");
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(DecodeJoin(good.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeJoin(good + "x").ok());
  Rng rng(5);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = good;
    for (int i = 0; i < 3; ++i) bytes[rng.Below(bytes.size())] = static_cast<char>(rng.Next());
    DecodeJoin(bytes).status().IgnoreError();  // a rank or an error, never a crash
  }
}

TEST(GroupHandshake, SurvivesStrangersOnTheHostsPort) {
  std::vector<std::string> lines = {
      "GET / HTTP/1.1\r\n\r\n",
      std::string(1, '\0'),
      std::string(100'000, 'x'),
      FrameBytes(kFrameMagic, 0xffffffff, 1, ""),
      FrameBytes(kFrameMagic, 10, 99, "0123456789"),
      FrameBytes(kFrameMagic, 0, 0, ""),
      FrameBytes(kFrameMagic, 5, 1, "short"),
      FrameBytes(kFrameMagic, 0, 4, ""),                  // a welcome: from hosts only
      FrameBytes(kFrameMagic, 3, 5, "abc"),               // a peer's, damaged
      FrameBytes(kFrameMagic, 8, 6, std::string(8, 0)),   // of a formed group
      FrameBytes(kFrameMagic, 100, 1, "less than said"),  // and then silence
  };
  const std::string join = GoodJoin();
  Rng rng(9);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = FrameBytes(kFrameMagic, static_cast<uint32_t>(join.size()), 1, join);
    for (int i = 0; i < 4; ++i)
      bytes[4 + rng.Below(bytes.size() - 4)] ^= static_cast<char>(rng.Next());
    lines.push_back(bytes);
  }
  UcxGroupOptions options;
  options.listen_ip = "127.0.0.1";
  auto host = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
  options.addresses = {"127.0.0.1:" + std::to_string(host->port())};
  auto member = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (const std::string& line : lines) {
    strangers.push_back(std::make_unique<Stranger>(host->port()));
    strangers.back()->Say(line);
    if (strangers.size() % 3 == 0) strangers.pop_back();  // hangs up
  }
  OnRanks(2, [&](int rank) {
    auto group = (rank == 0 ? host : member)->Join(TestGroup(2, rank));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(RunScript(group->get(), 3, 10, Duration::Seconds(60)), "");
  });
}

// A rank that joins and goes away leaves its place to another.
TEST(GroupHandshake, ARankThatGoesAwayIsForgotten) {
  UcxGroupOptions options;
  options.listen_ip = "127.0.0.1";
  auto host = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
  options.addresses = {"127.0.0.1:" + std::to_string(host->port())};
  auto member = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
  OnRanks(2, [&](int rank) {
    if (rank == 0) {
      auto group = host->Join(TestGroup(2, 0));
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ(RunScript(group->get(), 3, 10, Duration::Seconds(60)), "");
      return;
    }
    // Not all of the group's ranks come, so it gives up, again and again.
    GroupOptions impatient = TestGroup(2, 1);
    impatient.timeout = Duration::Millis(1);
    for (int i = 0; i < 5; ++i) member->Join(impatient).status().IgnoreError();
    auto group = member->Join(TestGroup(2, 1));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(RunScript(group->get(), 3, 10, Duration::Seconds(60)), "");
  });
}

TEST(GroupHandshake, SaysWhatIsWrongWithAddresses) {
  UcxGroupOptions options;
  options.listen_ip = "192.0.2.1";  // of no host
  auto made = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("192.0.2.1:0"));
  options.listen_ip = "127.0.0.1";
  options.addresses = {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"};
  auto rendezvous = CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
  EXPECT_EQ(rendezvous->Join(TestGroup(2, 1)).status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* address : {"127.0.0.1:1", "nonsense", ":5", "127.0.0.1:"}) {
    rendezvous->SetAddresses({address});
    GroupOptions impatient = TestGroup(2, 1);
    impatient.timeout = Duration::Millis(200);
    const absl::Status status = rendezvous->Join(impatient).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("missing rank 0 (" + std::string(address)));
  }
}

}  // namespace
}  // namespace baton::transport
