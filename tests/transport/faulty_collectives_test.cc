// The decorator that harms collectives, around groups of threads.

#include "transport/faulty/faulty_collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/transport/group_fabrics.h"
#include "tests/transport/literal_collectives.h"

namespace baton::transport {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Duration kLong = Duration::Seconds(60);

// A group of threads whose rank 1 is faulty.
class FaultyGroup {
 public:
  FaultyGroup(int ranks, const FaultyCollectivesOptions& options) : group_(&fabric_, ranks) {
    auto faulty = std::make_unique<FaultyCollectives>(std::move(group_.members[1]), options);
    faulty_ = faulty.get();
    group_.members[1] = std::move(faulty);
  }
  std::vector<std::string> RunScripts(int calls, Duration timeout) {
    std::vector<std::string> trouble(group_.members.size());
    OnRanks(group_.size(), [&](int rank) {
      trouble[static_cast<size_t>(rank)] = RunScript(&group_.at(rank), 4, calls, timeout);
    });
    return trouble;
  }
  FaultyCollectives& faulty() { return *faulty_; }
  Collectives& at(int rank) { return group_.at(rank); }

 private:
  InprocGroupFabric fabric_;
  TestGroupOf group_;
  FaultyCollectives* faulty_ = nullptr;
};

TEST(FaultyCollectives, DelaysChangeNoResult) {
  std::vector<CollectiveFaultCounts> counts;
  for (int run = 0; run < 2; ++run) {
    Duration waited;
    FaultyGroup group(3, {.seed = 7, .rates = {.delay = 0.3}, .wait = [&](Duration late) {
                            EXPECT_LE(late, Duration::Millis(20));
                            waited = waited + late;
                          }});
    EXPECT_THAT(group.RunScripts(40, kLong), testing::Each(""));
    counts.push_back(group.faulty().counts());
    EXPECT_EQ(counts.back().calls, 40u);
    EXPECT_GT(counts.back().delayed, 3u);
    EXPECT_LT(counts.back().delayed, 37u);
    EXPECT_GT(waited, Duration::Millis(0));
  }
  EXPECT_EQ(counts[0], counts[1]);
}

TEST(FaultyCollectives, AFailureReachesAll) {
  FaultyGroup group(3, {.seed = 3, .rates = {.fail = 0.2}, .first_call = 5});
  for (const std::string& trouble : group.RunScripts(200, kLong)) {
    EXPECT_THAT(trouble, HasSubstr("rank 1 (host1:7000): injected"));
  }
  EXPECT_EQ(group.faulty().counts().failed, 1u);
  EXPECT_GT(group.faulty().counts().calls, 5u);
}

TEST(FaultyCollectives, ADroppedRankIsMissed) {
  FaultyGroup group(3, {.seed = 5, .rates = {.drop = 0.2}, .first_call = 5});
  const std::vector<std::string> trouble = group.RunScripts(200, Duration::Millis(400));
  EXPECT_THAT(trouble[1], HasSubstr("injected: rank 1 takes no part"));
  for (const int rank : {0, 2}) {
    EXPECT_THAT(trouble[static_cast<size_t>(rank)],
                HasSubstr("rank 1 (host1:7000) did not take part in"));
    EXPECT_THAT(group.at(rank).lost_ranks(), ElementsAre(1));
  }
}

TEST(FaultyCollectives, WithoutFaultsItIsTheInnerGroup) {
  FaultyGroup group(2, {});
  EXPECT_THAT(group.RunScripts(30, kLong), testing::Each(""));
  EXPECT_EQ(group.faulty().counts(), (CollectiveFaultCounts{.calls = 30}));
  EXPECT_EQ(group.at(1).rank(), 1);
  EXPECT_EQ(group.at(1).generation(), 1u);
  group.faulty().Drop();
  EXPECT_FALSE(group.at(1).Barrier(kLong).ok());
}

}  // namespace
}  // namespace baton::transport
