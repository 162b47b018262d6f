// What ranks of different processes tell each other beside the data.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <map>
#include <memory>

#include "transport/group/control.h"

namespace baton::transport {
namespace {

using testing::ElementsAre;

// A rank that was stopped finds its deadline passed and, unread, that the others have given it up.
// Who asks after CatchUp knows.
TEST(GroupControl, CatchUpHearsWhatWasSaidBefore) {
  for (int round = 0; round < 50; ++round) {
    std::array<int, 2> ends{};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()), 0);
    const auto state = std::make_shared<GroupState>(0, std::vector<std::string>{"a", "b"});
    std::map<int, FrameSocket> sockets;
    sockets.emplace(1, FrameSocket(ends[0], kMaxFrameBytes));
    const auto control =
        GroupControl::Start(state, std::move(sockets), std::make_shared<MonotonicClock>());
    ASSERT_TRUE(control.ok()) << control.status();
    (*control)->CatchUp();
    EXPECT_FALSE(state->broken());

    FrameSocket peer(ends[1], kMaxFrameBytes);
    peer.Queue(FrameKind::kBreak,
               PayloadWriter()
                   .Put(uint64_t{0})
                   .Put(static_cast<uint32_t>(absl::StatusCode::kDeadlineExceeded))
                   .PutText("rank 0 (a) did not come")
                   .PutRanks({0})
                   .Put(uint8_t{0})
                   .bytes());
    ASSERT_TRUE(peer.Pump().ok());
    ASSERT_FALSE(peer.wants_write());
    (*control)->CatchUp();
    ASSERT_TRUE(state->broken());
    EXPECT_THAT(state->failure().lost_ranks, ElementsAre(0));
  }
}

}  // namespace
}  // namespace baton::transport
