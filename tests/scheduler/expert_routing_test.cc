#include "scheduler/expert_routing.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ExpertPlacement Placement(int32_t experts, int32_t ranks, std::vector<int32_t> slots) {
  ExpertTopology topology;
  topology.layers = 1;
  topology.experts = experts;
  topology.ranks = ranks;
  topology.slots_per_rank = static_cast<int32_t>(slots.size()) / ranks;
  const auto placement = ExpertPlacement::FromSlots(topology, std::move(slots));
  EXPECT_TRUE(placement.ok()) << placement.status();
  return *placement;
}

// Every expert once, then at random; some ranks may hold an expert twice.
ExpertPlacement RandomPlacement(Rng& rng, int32_t experts, int32_t ranks) {
  const int32_t spare = static_cast<int32_t>(rng.Below(2 * ranks));
  const int32_t per_rank = std::min(experts, (experts + spare + ranks - 1) / ranks);
  std::vector<int32_t> slots(ranks * per_rank);
  for (size_t s = 0; s < slots.size(); ++s) {
    slots[s] = s < static_cast<size_t>(experts) ? static_cast<int32_t>(s)
                                                : static_cast<int32_t>(rng.Below(experts));
  }
  for (size_t s = slots.size(); s > 1; --s) std::swap(slots[s - 1], slots[rng.Below(s)]);
  return Placement(experts, ranks, std::move(slots));
}

TEST(ExpertRouting, CountsWhatIsLostWithARank) {
  const ExpertPlacement p = Placement(4, 3, {0, 1, 1, 2, 3, 2});
  EXPECT_EQ(CountUncovered(p, {}), 0);
  EXPECT_EQ(CountOnOneRank(p, {}), 2);  // 0 and 3
  EXPECT_EQ(CountUncovered(p, {true, false, true}), 0);
  EXPECT_EQ(CountOnOneRank(p, {true, false, true}), 4);
  EXPECT_EQ(CountUncovered(p, {false, true, true}), 1);
  EXPECT_EQ(CountUncovered(p, {false, false, false}), 4);
}

TEST(ExpertRouting, TableHasLiveReplicasAlone) {
  const ExpertPlacement p = Placement(3, 3, {0, 1, 1, 2, 0, 1});
  const auto all = MakeReplicaTable(p, 0, {});
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->max_replicas, 3);
  EXPECT_THAT(all->counts, ElementsAre(2, 3, 1));
  EXPECT_THAT(all->replicas, ElementsAre(0, 4, 0, /**/ 2, 5, 1, /**/ 3, 3, 3));
  const auto masked = MakeReplicaTable(p, 0, {false, true, true});
  ASSERT_TRUE(masked.ok());
  EXPECT_THAT(masked->counts, ElementsAre(1, 2, 1));
  EXPECT_THAT(masked->replicas, ElementsAre(4, 4, /**/ 5, 2, /**/ 3, 3));
  const absl::Status uncovered = MakeReplicaTable(p, 0, {true, false, true}).status();
  EXPECT_EQ(uncovered.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(uncovered.message()),
              HasSubstr("expert 2 of MoE layer 0 has no replica on a live rank"));
}

TEST(ExpertRouting, RowHashSpreadsPositionsAndRequestsEvenly) {
  for (const uint32_t replicas : {2u, 3u, 5u, 8u}) {
    std::vector<int> along(replicas);
    std::vector<int> across(replicas);
    for (int i = 0; i < 8000; ++i) {
      ++along[RowHash(RequestId(77), i) % replicas];
      ++across[RowHash(RequestId(77 + i), 100) % replicas];
    }
    const int even = 8000 / static_cast<int>(replicas);
    for (int n : along) EXPECT_NEAR(n, even, even / 8) << replicas;
    for (int n : across) EXPECT_NEAR(n, even, even / 8) << replicas;
  }
  EXPECT_EQ(RowHash(RequestId(5), 9), RowHash(RequestId(5), 9));
}

std::vector<int64_t> LoadsOf(const ExpertPlacement& p, const std::vector<int32_t>& slot_tokens) {
  std::vector<int64_t> loads(p.ranks());
  for (int32_t s = 0; s < p.slots(); ++s) loads[p.rank_of(s)] += slot_tokens[s];
  return loads;
}

int64_t MaxLoad(const ExpertPlacement& p, const std::vector<int32_t>& slot_tokens) {
  const std::vector<int64_t> loads = LoadsOf(p, slot_tokens);
  return *std::max_element(loads.begin(), loads.end());
}

// Every way to split, tried.
int64_t BruteForce(const ExpertPlacement& p, const std::vector<bool>& live,
                   const std::vector<int32_t>& tokens) {
  int64_t best = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> loads(p.ranks());
  std::vector<int32_t> slots;
  std::function<void(int32_t, size_t, int32_t)> place = [&](int32_t e, size_t r, int32_t left) {
    if (e == p.experts()) {
      best = std::min(best, *std::max_element(loads.begin(), loads.end()));
      return;
    }
    const auto replicas = p.Replicas(0, e);
    const int32_t next = e + 1;
    const auto next_tokens = next < p.experts() ? tokens[next] : 0;
    if (r == replicas.size()) {
      if (left == 0) place(next, 0, next_tokens);
      return;
    }
    const int32_t rank = p.rank_of(replicas[r]);
    for (int32_t n = 0; n <= (live[rank] ? left : 0); ++n) {
      loads[rank] += n;
      place(e, r + 1, left - n);
      loads[rank] -= n;
    }
  };
  place(0, 0, tokens[0]);
  return best;
}

// The least maximum, by Hall's condition: tokens that only the ranks of a set can take must fit
// into that set.
int64_t HallBound(const ExpertPlacement& p, const std::vector<bool>& live,
                  const std::vector<int32_t>& tokens) {
  std::vector<uint32_t> holders(p.experts());
  for (int32_t e = 0; e < p.experts(); ++e) {
    for (int32_t s : p.Replicas(0, e)) {
      if (live[p.rank_of(s)]) holders[e] |= 1u << p.rank_of(s);
    }
  }
  int64_t bound = 0;
  for (uint32_t set = 1; set < 1u << p.ranks(); ++set) {
    int64_t confined = 0;
    for (int32_t e = 0; e < p.experts(); ++e) {
      if ((holders[e] & ~set) == 0) confined += tokens[e];
    }
    const int64_t size = __builtin_popcount(set);
    bound = std::max(bound, (confined + size - 1) / size);
  }
  return bound;
}

// Each expert's tokens are all placed, on its own live slots.
void CheckSplit(const ExpertPlacement& p, const std::vector<bool>& live,
                const std::vector<int32_t>& tokens, const std::vector<int32_t>& split) {
  std::vector<int32_t> placed(p.experts());
  for (int32_t s = 0; s < p.slots(); ++s) {
    ASSERT_GE(split[s], 0);
    ASSERT_TRUE(split[s] == 0 || live[p.rank_of(s)]);
    placed[p.Slots(0)[s]] += split[s];
  }
  ASSERT_EQ(placed, tokens);
}

struct SplitCase {
  ExpertPlacement placement;
  std::vector<bool> live;
  std::vector<int32_t> tokens;
};

SplitCase RandomSplit(Rng& rng, int32_t max_experts, int32_t max_ranks, int32_t max_tokens) {
  const int32_t ranks = 1 + static_cast<int32_t>(rng.Below(max_ranks));
  const int32_t experts = 1 + static_cast<int32_t>(rng.Below(max_experts));
  SplitCase c{RandomPlacement(rng, experts, ranks), std::vector<bool>(ranks, true), {}};
  if (rng.Chance(0.3)) c.live[rng.Below(ranks)] = false;
  const bool skewed = rng.Chance(0.5);
  for (int32_t e = 0; e < experts; ++e) {
    int32_t tokens = static_cast<int32_t>(rng.Below(max_tokens + 1));
    if (skewed) tokens /= 1 + static_cast<int32_t>(rng.Below(20));
    bool covered = false;
    for (int32_t s : c.placement.Replicas(0, e)) covered |= c.live[c.placement.rank_of(s)];
    c.tokens.push_back(covered ? tokens : 0);
  }
  return c;
}

TEST(ExpertRouting, NoSplitIsBetter) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const SplitCase c = RandomSplit(rng, 4, 3, 5);
    const auto split = SplitTokens(c.placement, 0, c.live, c.tokens);
    CheckSplit(c.placement, c.live, c.tokens, split);
    const int64_t best = BruteForce(c.placement, c.live, c.tokens);
    ASSERT_EQ(MaxLoad(c.placement, split), best);
    ASSERT_EQ(HallBound(c.placement, c.live, c.tokens), best);  // the oracle of the next test
  }
}

TEST(ExpertRouting, NoLargeSplitIsBetter) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const SplitCase c = RandomSplit(rng, 64, 8, 100'000);
    const auto split = SplitTokens(c.placement, 0, c.live, c.tokens);
    CheckSplit(c.placement, c.live, c.tokens, split);
    ASSERT_EQ(MaxLoad(c.placement, split), HallBound(c.placement, c.live, c.tokens));
  }
}

TEST(ExpertRouting, MovesTokensAlongAChainOfExperts) {
  // Expert 1 could go to ranks 0 and 1, expert 2 to ranks 1 and 2: what rank 0 must keep of expert
  // 0 pushes expert 1 to rank 1 and expert 2 on to rank 2.
  const ExpertPlacement p = Placement(3, 3, {0, 1, 1, 2, 2, 2});
  const std::vector<int32_t> split = SplitTokens(p, 0, {}, std::vector<int32_t>{30, 30, 30});
  EXPECT_THAT(LoadsOf(p, split), ElementsAre(30, 30, 30));
  EXPECT_EQ(split[3] + split[4] + split[5], 30);
}

TEST(ExpertRouting, AssignsExactlyTheSplit) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Rng rng(seed);
    const int32_t experts = 1 + static_cast<int32_t>(rng.Below(20));
    const ExpertPlacement p = RandomPlacement(rng, experts, 4);
    std::vector<int32_t> choices(rng.Below(300));
    std::vector<int32_t> tokens(experts);
    for (int32_t& choice : choices) ++tokens[choice = static_cast<int32_t>(rng.Below(experts))];
    const std::vector<int32_t> split = SplitTokens(p, 0, {}, tokens);
    std::vector<int32_t> physical(choices.size());
    AssignSlots(p, 0, split, choices, physical);
    std::vector<int32_t> used(p.slots());
    for (size_t i = 0; i < choices.size(); ++i) {
      ASSERT_EQ(p.Slots(0)[physical[i]], choices[i]);
      ++used[physical[i]];
    }
    ASSERT_EQ(used, split);
  }
}

}  // namespace
}  // namespace baton::scheduler
