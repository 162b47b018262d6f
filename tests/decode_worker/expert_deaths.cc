#include "tests/decode_worker/expert_deaths.h"

#include <memory>
#include <vector>

#include "base/random.h"
#include "decode_worker/expert_group.h"
#include "scheduler/expert_routing.h"
#include "tests/decode_worker/expert_cluster.h"
#include "tests/sanitized.h"

namespace baton::decode_worker {
namespace {

constexpr int32_t kRanks = 4;

// Any two of the four ranks hold all experts.
ExpertCluster::Options Covered() {
  ExpertCluster::Options options = ExpertCluster::Covered(kRanks, 48);
  options.group.rebalance.restore_retry = Duration::Millis(5);
  return options;
}

class Deaths {
 public:
  Deaths(const transport::GroupParam& param, const ExpertCluster::Options& options)
      : cluster_(options, param.make()) {
    for (int32_t r = 0; r < kRanks; ++r) {
      cluster_.Await("the group", [&] { return cluster_.view(r) != nullptr; });
    }
    for (size_t a = 0; a < kRanks; ++a) {
      for (size_t b = a + 1; b < kRanks; ++b) {
        std::vector<bool> live(kRanks, true);
        live[a] = live[b] = false;
        EXPECT_EQ(scheduler::CountUncovered(*cluster_.view(0)->active.placement, live), 0);
      }
    }
    cluster_.AwaitPasses(3);
  }

  ExpertCluster& cluster() { return cluster_; }

  // All that are live go on, and see exactly these.
  void AwaitLive(const std::vector<bool>& live) {
    AwaitView(live);
    cluster_.AwaitPasses(10);
  }
  void AwaitView(const std::vector<bool>& live) {
    for (int32_t r = 0; r < kRanks; ++r) {
      if (!live[static_cast<size_t>(r)]) continue;
      cluster_.Await("the right ranks to be live", [&] {
        const auto view = cluster_.view(r);
        return view != nullptr && view->active.live == live;
      });
      EXPECT_TRUE(cluster_.health(r).ok()) << "rank " << r << ": " << cluster_.health(r);
    }
  }

  void AwaitEnd(int32_t r) {
    cluster_.Await("a rank's end", [&] { return !cluster_.health(r).ok(); });
  }

 private:
  ExpertCluster cluster_;
};

TEST_P(ExpertDeathsTest, TwoRanksDieInOnePass) {
  Deaths deaths(GetParam(), Covered());
  deaths.cluster().KillInPass({2, 3});
  deaths.AwaitLive({true, true, false, false});
  EXPECT_EQ(deaths.cluster().report(0).lost, 2u);
}

TEST_P(ExpertDeathsTest, TheLeaderAndAnotherDie) {
  Deaths deaths(GetParam(), Covered());
  deaths.cluster().KillInPass({0, 2});
  deaths.AwaitLive({false, true, false, true});
  EXPECT_EQ(deaths.cluster().view(3)->leader, 1);
}

TEST_P(ExpertDeathsTest, ARankDiesWhileTheGroupFormsAnew) {
  for (const int32_t second : {0, 2}) {  // the host, or another
    SCOPED_TRACE(second);
    Deaths deaths(GetParam(), Covered());
    deaths.cluster().rendezvous(second).DieInRegroup();
    deaths.cluster().KillInPass({3});
    deaths.AwaitEnd(second);
    std::vector<bool> live(kRanks, true);
    live[3] = live[static_cast<size_t>(second)] = false;
    deaths.AwaitLive(live);
  }
}

// Nobody knows it to be lost: the others wait for it, and then do without.
TEST_P(ExpertDeathsTest, ARankFallsSilentWhileTheGroupFormsAnew) {
  for (const int32_t second : {0, 1}) {  // the host, or another
    SCOPED_TRACE(second);
    ExpertCluster::Options options = Covered();
    options.group.reform_timeout = Duration::Millis(400 * kSanitizedTestScale);
    Deaths deaths(GetParam(), options);
    deaths.cluster().rendezvous(second).HoldRegroups(true);
    deaths.cluster().KillInPass({3});
    std::vector<bool> live(kRanks, true);
    live[3] = live[static_cast<size_t>(second)] = false;
    if (second == 1) {
      deaths.AwaitView(live);
    } else {
      // Half of them, without the first, and it may be alive: it is.
      deaths.AwaitEnd(1);
      deaths.AwaitEnd(2);
    }
    deaths.cluster().rendezvous(second).HoldRegroups(false);
    deaths.AwaitEnd(second);
    deaths.cluster().AwaitPasses(10);
  }
}

TEST_P(ExpertDeathsTest, SilentRanksAreFenced) {
  ExpertCluster::Options options = Covered();
  options.group.timeout = Duration::Millis(300 * kSanitizedTestScale);
  Deaths deaths(GetParam(), options);
  for (const int32_t r : {0, 3}) deaths.cluster().runner(r).HoldPasses(true);
  deaths.AwaitView({false, true, true, false});
  for (const int32_t r : {0, 3}) deaths.cluster().runner(r).HoldPasses(false);
  for (const int32_t r : {0, 3}) deaths.AwaitEnd(r);
  deaths.cluster().AwaitPasses(10);
}

// Half of the group, and not the half with the first rank: the other is told, or has ended.
TEST_P(ExpertDeathsTest, OfTwoRanksOneIsEnough) {
  for (const bool silent : {false, true}) {
    SCOPED_TRACE(silent);
    ExpertCluster::Options options = Covered();
    options.ranks = 2;
    options.redundant_experts = 16;
    if (silent) options.group.timeout = Duration::Millis(300 * kSanitizedTestScale);
    ExpertCluster cluster(options, GetParam().make());
    for (int32_t r = 0; r < 2; ++r) {
      cluster.Await("the group", [&] { return cluster.view(r) != nullptr; });
    }
    if (silent) {
      cluster.runner(0).HoldPasses(true);
    } else {
      cluster.KillInPass({0});
    }
    cluster.Await("the other to go on", [&] { return !cluster.view(1)->active.live[0]; });
    cluster.runner(0).HoldPasses(false);
    cluster.Await("its end", [&] { return !cluster.health(0).ok(); });
    cluster.AwaitPasses(10);
    EXPECT_TRUE(cluster.health(1).ok()) << cluster.health(1);
  }
}

TEST_P(ExpertDeathsTest, ARankDiesWhileAnotherComesBack) {
  Deaths deaths(GetParam(), Covered());
  deaths.cluster().KillInPass({3});
  deaths.AwaitLive({true, true, true, false});
  deaths.cluster().rendezvous(2).DieInRegroup();
  deaths.cluster().Restart(3);
  deaths.AwaitEnd(2);
  deaths.AwaitLive({true, true, false, true});
}

TEST_P(ExpertDeathsTest, ARankThatCameBackIsGoneAgain) {
  Deaths deaths(GetParam(), Covered());
  deaths.cluster().KillInPass({0});
  deaths.AwaitLive({false, true, true, true});
  deaths.cluster().rendezvous(0).VanishOnce();
  deaths.cluster().Restart(0);
  deaths.AwaitLive({true, true, true, true});
}

TEST_P(ExpertDeathsTest, RanksComeBackOneByOne) {
  Deaths deaths(GetParam(), Covered());
  deaths.cluster().KillInPass({0, 2});
  deaths.AwaitLive({false, true, false, true});
  deaths.cluster().Restart(2);
  deaths.AwaitLive({false, true, true, true});
  EXPECT_FALSE(deaths.cluster().view(2)->present[0]);
  deaths.cluster().Restart(0);
  deaths.AwaitLive({true, true, true, true});
}

// Two at a time, at any moment, that come back in any order.
TEST_P(ExpertDeathsTest, RanksDieInPairs) {
  Deaths deaths(GetParam(), Covered());
  Rng rng(11);
  for (int round = 0; round < 4; ++round) {
    const int32_t first = static_cast<int32_t>(rng.Below(kRanks));
    const int32_t second = (first + 1 + static_cast<int32_t>(rng.Below(kRanks - 1))) % kRanks;
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << first << " and " << second);
    if (rng.Chance(0.5)) {
      deaths.cluster().KillInPass({first, second});
    } else {
      deaths.cluster().Kill(first);
      deaths.cluster().Kill(second);
    }
    std::vector<bool> live(kRanks, true);
    live[static_cast<size_t>(first)] = live[static_cast<size_t>(second)] = false;
    deaths.AwaitLive(live);
    deaths.cluster().Restart(first);
    if (rng.Chance(0.5)) {
      live[static_cast<size_t>(first)] = true;
      deaths.AwaitLive(live);
    }
    deaths.cluster().Restart(second);
    deaths.AwaitLive(std::vector<bool>(kRanks, true));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace baton::decode_worker
