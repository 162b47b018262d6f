// Collectives between threads of one process, and what all kinds share and needs no threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/transport/collectives_conformance.h"
#include "transport/group/group_state.h"

namespace baton::transport {
namespace {

using testing::ElementsAre;

INSTANTIATE_TEST_SUITE_P(Inproc, CollectivesConformance,
                         testing::Values(GroupParam{
                             "inproc", [] { return std::make_unique<InprocGroupFabric>(); }}),
                         [](const auto& info) { return info.param.name; });

TEST(GroupOptions, AreChecked) {
  const auto code = [](const std::function<void(GroupOptions*)>& change) {
    GroupOptions options = TestGroup(4, 2);
    change(&options);
    return CheckGroupOptions(options).code();
  };
  const auto kBad = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](GroupOptions*) {}), absl::StatusCode::kOk);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {0, 3}; }), absl::StatusCode::kOk);
  EXPECT_EQ(code([](GroupOptions* o) { o->world_size = 0; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->world_size = kMaxGroupRanks + 1; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->rank = 4; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->rank = -1; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {2}; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {3, 0}; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {0, 0}; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {4}; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->absent_ranks = {-1}; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->reduce_part_bytes = 6; }), kBad);
  EXPECT_EQ(code([](GroupOptions* o) { o->model_hash = std::string(2000, 'x'); }), kBad);
}

// Rank 0 waits in call 9 for ranks 1 and 2. Rank 1 has said that it waits in call 8 for rank 3.
TEST(GroupState, BlamesWhomTheSilentOnesWaitFor) {
  GroupState state(0, std::vector<std::string>(5));
  const Tick then = Tick::FromNanos(10), now = Tick::FromNanos(20);
  state.PeerReported(1, 8, {3}, now);
  EXPECT_THAT(state.Suspects({1, 2}, 9, then), ElementsAre(2, 3));
  EXPECT_THAT(state.Suspects({1}, 9, then), ElementsAre(3));
  // Rank 3 in turn waits for rank 4.
  state.PeerReported(3, 7, {4}, now);
  EXPECT_THAT(state.Suspects({1}, 9, then), ElementsAre(4));
  // What was said long ago, or of this very call, clears nobody.
  state.PeerReported(1, 8, {3}, Tick::FromNanos(5));
  EXPECT_THAT(state.Suspects({1}, 9, then), ElementsAre(1));
  state.PeerReported(1, 9, {3}, now);
  EXPECT_THAT(state.Suspects({1}, 9, then), ElementsAre(1));
  // They wait for each other, and for this rank: it cannot be told.
  state.PeerReported(1, 8, {3}, now);
  state.PeerReported(3, 8, {1, 0}, now);
  EXPECT_THAT(state.Suspects({1}, 9, then), ElementsAre(1));
}

TEST(GroupState, TheFailureThatSpoilsTheEarlierCallCounts) {
  GroupState state(0, std::vector<std::string>(3));
  EXPECT_FALSE(state.broken());
  EXPECT_TRUE(state.Break({absl::UnavailableError("a"), {1}}, 5));
  EXPECT_FALSE(state.BrokenFor(5));
  EXPECT_TRUE(state.BrokenFor(6));
  EXPECT_FALSE(state.Break({absl::UnavailableError("b"), {2}}, 5));
  EXPECT_EQ(state.failure().status.message(), "a");
  EXPECT_TRUE(state.Break({absl::UnavailableError("c"), {2}}, 0));
  EXPECT_TRUE(state.BrokenFor(1));
  EXPECT_THAT(state.failure().lost_ranks, ElementsAre(2));
}

}  // namespace
}  // namespace baton::transport
