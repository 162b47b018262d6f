// Cases worked out by hand, the golden case, and every refusal. Random cases:
// expert_placement_property_test.cc.

#include "scheduler/expert_placement.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/eplb_oracle.h"

namespace baton::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

ExpertTopology Topology(int32_t layers, int32_t experts, int32_t ranks, int32_t slots_per_rank) {
  ExpertTopology topology;
  topology.layers = layers;
  topology.experts = experts;
  topology.ranks = ranks;
  topology.slots_per_rank = slots_per_rank;
  return topology;
}

PlacementResult Place(const PlacementRequest& request) {
  absl::StatusOr<PlacementResult> result = PlaceExperts(request);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

// The case that the algorithm's publishers document, and its answer.
PlacementRequest Golden() {
  PlacementRequest request;
  request.topology = Topology(2, 12, 8, 2);
  request.topology.groups = 4;
  request.topology.ranks_per_node = 4;
  request.loads = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                   20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
  return request;
}
constexpr int32_t kGoldenSlots[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                         {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};

TEST(ExpertPlacement, EqualsThePublishedAnswer) {
  const PlacementResult result = Place(Golden());
  EXPECT_EQ(result.policy, PlacementPolicy::kHierarchical);
  EXPECT_THAT(result.placement.Slots(0), ElementsAreArray(kGoldenSlots[0]));
  EXPECT_THAT(result.placement.Slots(1), ElementsAreArray(kGoldenSlots[1]));
  EXPECT_THAT(result.placement.Replicas(0, 5), ElementsAre(0, 2));
  EXPECT_EQ(result.on_one_rank, 16);  // 4 of 12 experts of each layer have a second replica
  EXPECT_EQ(result.copies, 0);
}

TEST(ExpertPlacement, TheOracleEqualsThePublishedAnswerToo) {
  const PlacementRequest request = Golden();
  for (int layer = 0; layer < 2; ++layer) {
    const auto first = request.loads.begin() + layer * 12;
    EXPECT_THAT(oracle::Rebalance({first, first + 12}, 16, 4, 2, 8),
                ElementsAreArray(kGoldenSlots[layer]));
  }
}

TEST(ExpertPlacement, OneRankHoldsEachExpertOnce) {
  PlacementRequest request;
  request.topology = Topology(1, 4, 1, 4);
  request.loads = {1, 5, 2, 3};
  request.survive_rank_loss = true;  // there is no second rank
  const PlacementResult result = Place(request);
  EXPECT_THAT(result.placement.Slots(0), testing::UnorderedElementsAre(0, 1, 2, 3));
  EXPECT_EQ(result.on_one_rank, 4);
}

TEST(ExpertPlacement, GivesSparesToTheHot) {
  PlacementRequest request;
  request.topology = Topology(1, 4, 3, 2);
  request.loads = {60, 30, 10, 20};
  const PlacementResult result = Place(request);
  EXPECT_EQ(result.placement.Replicas(0, 0).size(), 3u);  // 20 tokens each
  EXPECT_DOUBLE_EQ(oracle::MaxLoad(request.loads, result.placement.Slots(0), 3), 40);
}

TEST(ExpertPlacement, SwapsWhatThePublishedPackingLeavesUneven) {
  PlacementRequest request;
  request.topology = Topology(1, 6, 2, 3);
  request.loads = {8, 7, 6, 5, 4, 0};  // heaviest first: 8 + 5 + 4 against 7 + 6 + 0
  EXPECT_DOUBLE_EQ(oracle::MaxLoad(request.loads, oracle::Rebalance(request.loads, 6, 1, 1, 2), 2),
                   17);
  EXPECT_DOUBLE_EQ(oracle::MaxLoad(request.loads, Place(request).placement.Slots(0), 2), 15);
}

TEST(ExpertPlacement, NoSecondReplicaOnTheSameRank) {
  PlacementRequest request;
  request.topology = Topology(1, 4, 2, 4);
  request.loads = {100, 1, 1, 1};  // the published algorithm gives all four spares to expert 0
  const PlacementResult result = Place(request);
  for (int32_t e = 0; e < 4; ++e) {
    EXPECT_THAT(result.placement.Replicas(0, e), testing::SizeIs(2)) << e;
  }
  EXPECT_EQ(result.on_one_rank, 0);
}

TEST(ExpertPlacement, ALayerWithoutLoadSpreadsItsSpares) {
  PlacementRequest request;
  request.topology = Topology(1, 8, 4, 3);
  request.loads.assign(8, 0.0);
  const PlacementResult result = Place(request);
  for (int32_t e = 0; e < 8; ++e) EXPECT_LE(result.placement.Replicas(0, e).size(), 2u);
}

TEST(ExpertPlacement, SurvivesOneRankAndOneDomainOnRequest) {
  PlacementRequest request;
  request.topology = Topology(1, 4, 4, 2);
  request.topology.domains = {7, 7, -1, -1};
  request.loads = {1000, 1, 1, 1};
  EXPECT_GT(Place(request).on_one_rank, 0);
  request.survive_rank_loss = true;
  const PlacementResult result = Place(request);
  EXPECT_EQ(result.on_one_rank, 0);
  EXPECT_EQ(result.on_one_domain, 0);
}

TEST(ExpertPlacement, TooFewSlotsProtectTheHottest) {
  PlacementRequest request;
  request.topology = Topology(1, 4, 3, 2);
  request.loads = {1, 9, 100, 2};
  request.survive_rank_loss = true;
  const PlacementResult result = Place(request);
  EXPECT_EQ(result.on_one_rank, 2);
  EXPECT_THAT(result.placement.Replicas(0, 2), testing::SizeIs(2));
  EXPECT_THAT(result.placement.Replicas(0, 1), testing::SizeIs(2));
}

TEST(ExpertPlacement, AutoFallsBackToGlobal) {
  PlacementRequest request = Golden();
  request.topology.groups = 3;  // 3 groups do not divide over 2 nodes
  EXPECT_EQ(Place(request).policy, PlacementPolicy::kGlobal);
  request.topology.groups = 5;  // 12 experts do not divide into 5 groups
  EXPECT_EQ(Place(request).policy, PlacementPolicy::kGlobal);
  request.policy = PlacementPolicy::kHierarchical;
  EXPECT_THAT(PlaceExperts(request).status().message(),
              HasSubstr("12 experts do not divide into 5 groups: use policy auto or global"));
  request.topology.groups = 3;
  EXPECT_THAT(PlaceExperts(request).status().message(),
              HasSubstr("3 groups do not divide over 2 nodes"));
}

TEST(ExpertPlacement, TheSameLoadsMoveNothing) {
  for (bool survive : {false, true}) {
    PlacementRequest request = Golden();
    request.survive_rank_loss = survive;
    request.keep_slack = 0;
    const PlacementResult first = Place(request);
    request.previous = std::make_shared<ExpertPlacement>(first.placement);
    const PlacementResult second = Place(request);
    EXPECT_EQ(second.copies, 0);
    EXPECT_EQ(second.placement, first.placement);
  }
}

TEST(ExpertPlacement, OneHotterExpertCostsFewCopies) {
  PlacementRequest request;
  request.topology = Topology(1, 16, 4, 5);
  request.loads.assign(16, 10.0);
  const PlacementResult before = Place(request);
  request.loads[3] = 30;
  request.previous = std::make_shared<ExpertPlacement>(before.placement);
  const PlacementResult after = Place(request);
  EXPECT_LE(after.copies, 6);
  EXPECT_GT(after.copies, 0);
  EXPECT_EQ(after.copies, CountCopies(before.placement, after.placement, 0) +
                              CountCopies(before.placement, after.placement, 1) +
                              CountCopies(before.placement, after.placement, 2) +
                              CountCopies(before.placement, after.placement, 3));
}

TEST(ExpertPlacement, LiveRanksTakeOver) {
  PlacementRequest request;
  request.topology = Topology(1, 6, 4, 2);
  request.topology.ranks_per_node = 2;
  request.loads = {6, 5, 4, 3, 2, 1};
  const PlacementResult before = Place(request);
  request.live = {true, false, true, true};
  request.previous = std::make_shared<ExpertPlacement>(before.placement);
  const PlacementResult after = Place(request);
  std::vector<int> seen(6);
  for (int32_t s : {0, 1, 4, 5, 6, 7}) ++seen[after.placement.Slots(0)[s]];
  EXPECT_THAT(seen, testing::Each(1));
  EXPECT_EQ(after.placement.Slots(0)[2], before.placement.Slots(0)[2]);
  EXPECT_EQ(after.placement.Slots(0)[3], before.placement.Slots(0)[3]);
  EXPECT_EQ(after.on_one_rank, 6);
}

TEST(ExpertPlacement, SlotsPerRankRoundsUpAndStopsAtOneOfEach) {
  EXPECT_EQ(SlotsPerRank(16, 0, 1), 16);
  EXPECT_EQ(SlotsPerRank(16, 4, 8), 3);
  EXPECT_EQ(SlotsPerRank(256, 32, 32), 9);
  EXPECT_EQ(SlotsPerRank(16, 100, 2), 16);
}

TEST(ExpertPlacement, MixesLayersOfTwoPlacements) {
  const ExpertTopology topology = Topology(2, 2, 2, 1);
  const auto a = ExpertPlacement::FromSlots(topology, {0, 1, 0, 1});
  const auto b = ExpertPlacement::FromSlots(topology, {1, 0, 1, 0});
  ASSERT_TRUE(a.ok() && b.ok());
  const ExpertPlacement mixed = a->WithLayers(*b, 1, 2);
  EXPECT_THAT(mixed.Slots(0), ElementsAre(0, 1));
  EXPECT_THAT(mixed.Slots(1), ElementsAre(1, 0));
  EXPECT_THAT(mixed.Replicas(1, 0), ElementsAre(1));
  EXPECT_EQ(a->WithLayers(*b, 0, 2), *b);
}

// --- refusals -------------------------------------------------------------------------------

std::string Refusal(const PlacementRequest& request) {
  const absl::Status status = PlaceExperts(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ExpertPlacement, RefusesLoadsThatAreNoCounts) {
  PlacementRequest request = Golden();
  request.loads[13] = -1;
  EXPECT_THAT(Refusal(request), HasSubstr("load of layer 1, expert 1 is -1, allowed are finite"));
  request.loads[13] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Refusal(request), HasSubstr("expert 1 is nan"));
  request.loads[13] = std::numeric_limits<double>::infinity();
  EXPECT_THAT(Refusal(request), HasSubstr("expert 1 is inf"));
  request.loads.pop_back();
  EXPECT_THAT(Refusal(request), HasSubstr("23 loads given, expected 2 layers x 12 experts = 24"));
}

TEST(ExpertPlacement, RefusesShapesThatCannotWork) {
  const auto with = [](auto change) {
    PlacementRequest request = Golden();
    change(request.topology);
    return Refusal(request);
  };
  EXPECT_THAT(with([](ExpertTopology& t) { t.slots_per_rank = 1; }),
              HasSubstr("8 ranks x 1 slots = 8 slots, expected at least one for each of 12 "
                        "experts: use at least 2 slots per rank"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.slots_per_rank = 13; }),
              HasSubstr("slots_per_rank is 13, allowed are 1 to 12"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.layers = 0; }), HasSubstr("layers is 0"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.experts = -3; }), HasSubstr("experts is -3"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.groups = 13; }), HasSubstr("groups is 13"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.ranks = 0; }), HasSubstr("ranks is 0"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.ranks_per_node = 3; }),
              HasSubstr("8 ranks do not divide into nodes of 3"));
  EXPECT_THAT(with([](ExpertTopology& t) { t.ranks_per_node = 9; }),
              HasSubstr("ranks_per_node is 9, allowed are 0 to 8"));
  EXPECT_THAT(with([](ExpertTopology& t) {
                t.domains = {1, 2};
              }),
              HasSubstr("2 failure domains given, expected 8"));
}

TEST(ExpertPlacement, RefusesWhatDoesNotFitThePrevious) {
  PlacementRequest request = Golden();
  const auto golden = std::make_shared<ExpertPlacement>(Place(request).placement);
  request.live.assign(8, true);
  request.live[2] = false;
  EXPECT_THAT(Refusal(request), HasSubstr("1 ranks are not live, and there is no previous"));
  request.live.pop_back();
  EXPECT_THAT(Refusal(request), HasSubstr("live has 7 entries, expected 8"));
  request.live = {true, true, true, true, true, false, false, false};
  request.previous = golden;
  EXPECT_THAT(Refusal(request), HasSubstr("5 live ranks have 10 slots, fewer than the 12 experts"));
  request.live.clear();
  request.keep_slack = -0.5;
  EXPECT_THAT(Refusal(request), HasSubstr("keep_slack is -0.5"));
  request.keep_slack = 0;
  request.topology = Topology(2, 12, 4, 4);
  EXPECT_THAT(Refusal(request), HasSubstr("the previous placement has 2 layers, 12 experts, 8 "
                                          "ranks and 2 slots per rank, expected 2, 12, 4 and 4"));
}

TEST(ExpertPlacement, RefusesSlotsThatAreNoPlacement) {
  const ExpertTopology topology = Topology(1, 3, 2, 2);
  EXPECT_THAT(ExpertPlacement::FromSlots(topology, {0, 1, 2}).status().message(),
              HasSubstr("3 slots given, expected 1 layers x 4 slots = 4"));
  EXPECT_THAT(ExpertPlacement::FromSlots(topology, {0, 1, 3, 2}).status().message(),
              HasSubstr("slot 2 of layer 0 has expert 3, allowed are 0 to 2"));
  EXPECT_THAT(ExpertPlacement::FromSlots(topology, {0, 1, 1, 0}).status().message(),
              HasSubstr("expert 2 has no slot in layer 0"));
}

}  // namespace
}  // namespace baton::scheduler
