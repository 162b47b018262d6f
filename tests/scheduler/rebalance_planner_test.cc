// The planner's side of a rebalance, event by event. The whole group with random faults:
// rebalance_property_test.cc.

#include "scheduler/rebalance_planner.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Two layers of four experts on two ranks: 0 1 | 2 3, and spare slots 0 | 2.
RebalanceOptions Options() {
  RebalanceOptions options;
  options.topology.layers = 2;
  options.topology.experts = 4;
  options.topology.ranks = 2;
  options.topology.slots_per_rank = 3;
  options.interval = Duration::Millis(1'000);
  options.compute_timeout = Duration::Millis(100);
  options.prepare_timeout = Duration::Millis(200);
  options.restore_retry = Duration::Millis(50);
  return options;
}

ExpertPlacement Placement(std::vector<int32_t> slots) {
  const auto placement = ExpertPlacement::FromSlots(Options().topology, std::move(slots));
  EXPECT_TRUE(placement.ok()) << placement.status();
  return *placement;
}

ActiveExperts First() {
  return {1,
          std::make_shared<ExpertPlacement>(Placement({0, 1, 0, 2, 3, 2, 0, 1, 0, 2, 3, 2})),
          {true, true}};
}

class RebalancePlannerTest : public testing::Test {
 protected:
  explicit RebalancePlannerTest(const RebalanceOptions& options = Options())
      : planner(options, 0, First(), {true, true}, 2, now) {}

  void Step(std::vector<RebalanceEvent> events = {}) {
    sink.Clear();
    planner.Step(now, events, sink);
    planner.CheckInvariants();
  }
  void StepAfter(int64_t ms, std::vector<RebalanceEvent> events = {}) {
    now = now + Duration::Millis(ms);
    Step(std::move(events));
  }
  template <typename Action>
  std::vector<Action> All() const {
    std::vector<Action> found;
    for (const RebalanceAction& action : sink.actions) {
      if (const Action* a = std::get_if<Action>(&action)) found.push_back(*a);
    }
    return found;
  }
  template <typename Action>
  Action The() const {
    const std::vector<Action> found = All<Action>();
    EXPECT_EQ(found.size(), 1u);
    return found.empty() ? Action() : found[0];
  }

  static LoadsMeasured Loads(std::vector<double> loads) {
    return {std::make_shared<std::vector<double>>(std::move(loads))};
  }
  // Rank 0 has all the work.
  static LoadsMeasured Uneven() { return Loads({40, 40, 1, 1, 40, 40, 1, 1}); }
  // Answers a ComputePlacement.
  static PlacementComputed Answer(const ComputePlacement& compute, std::vector<int32_t> slots) {
    PlacementResult result;
    result.placement = Placement(std::move(slots));
    return {compute.ticket, result};
  }
  static PrepareEnded Prepared(int32_t rank, uint64_t version) {
    return {rank, version, absl::OkStatus()};
  }
  // Up to the messages that ask all ranks to prepare.
  void BeginRebalance() {
    Step({Uneven(), RebalanceRequested{}});
    Step({Answer(The<ComputePlacement>(), {0, 3, 1, 1, 2, 0, 0, 3, 1, 1, 2, 0})});
  }

  Tick now = Tick::FromNanos(1'000'000'000);
  RebalancePlanner planner;
  RebalanceSink sink;
};

TEST_F(RebalancePlannerTest, OnRequestItComputesPreparesAndSwitches) {
  Step({Uneven(), RebalanceRequested{}});
  const ComputePlacement compute = The<ComputePlacement>();
  EXPECT_EQ(compute.request->previous, planner.active().placement);
  EXPECT_THAT(compute.request->loads, SizeIs(8));
  EXPECT_LT(sink.report.balancedness, 0.6);

  Step({Answer(compute, {0, 3, 1, 1, 2, 0, 0, 3, 1, 1, 2, 0})});
  const auto prepares = All<SendPrepare>();
  ASSERT_THAT(prepares, SizeIs(2));
  EXPECT_EQ(prepares[0].message.target.version, 2u);
  EXPECT_EQ(prepares[0].message.leader, 0);
  EXPECT_THAT(prepares[0].message.copies,
              ElementsAre(ExpertCopy{0, 1, 3, 1}, ExpertCopy{0, 2, 1, 0}, ExpertCopy{1, 1, 3, 1},
                          ExpertCopy{1, 2, 1, 0}));
  EXPECT_THAT(prepares[1].message.copies, SizeIs(6));
  EXPECT_FALSE(planner.WantsSteps());

  Step({StepStarting{10}, Prepared(1, 2)});
  EXPECT_THAT(All<NameSwitch>(), IsEmpty());  // rank 0 is still copying
  Step({Prepared(0, 2)});
  EXPECT_TRUE(planner.WantsSteps());
  Step({StepStarting{11}});
  EXPECT_EQ(The<NameSwitch>().notice, (SwitchNotice{2, 12}));
  Step({StepStarting{12}});
  EXPECT_EQ(planner.active().version, 1u);  // until that step is over
  StepAfter(5, {StepStarting{13}});
  EXPECT_EQ(planner.active().version, 2u);
  EXPECT_EQ(sink.report.switches, 1u);
  EXPECT_EQ(sink.report.placement_age, Duration());
  EXPECT_GT(sink.report.balancedness, 0.9);
  const RebalanceEnded ended = The<RebalanceEnded>();
  EXPECT_EQ(ended.end, RebalanceEnd::kInstalled);
  EXPECT_TRUE(ended.requested);
  EXPECT_EQ(ended.copies, 10);
  EXPECT_GT(ended.gain, 0.3);
  EXPECT_FALSE(planner.WantsSteps());
}

TEST_F(RebalancePlannerTest, RefusesWithoutLoadsAndWhileBusy) {
  Step({RebalanceRequested{}});
  EXPECT_EQ(The<RebalanceEnded>().end, RebalanceEnd::kRefused);
  EXPECT_EQ(The<RebalanceEnded>().status.code(), absl::StatusCode::kFailedPrecondition);
  BeginRebalance();
  Step({RebalanceRequested{}});
  EXPECT_EQ(The<RebalanceEnded>().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(RebalancePlannerTest, AutomaticAtMostOncePerIntervalAndOnlyForAGain) {
  Step({Uneven()});
  EXPECT_THAT(sink.actions, IsEmpty());
  EXPECT_EQ(planner.NextWake(), now + Duration::Millis(1'000));
  StepAfter(1'000);
  const ComputePlacement first = The<ComputePlacement>();
  Step({Answer(first, {1, 0, 0, 3, 2, 2, 1, 0, 0, 3, 2, 2})});  // the same in other slots
  EXPECT_EQ(The<RebalanceEnded>().end, RebalanceEnd::kNotWorth);
  EXPECT_FALSE(The<RebalanceEnded>().requested);
  StepAfter(999);
  EXPECT_THAT(sink.actions, IsEmpty());
  StepAfter(1);
  EXPECT_THAT(All<ComputePlacement>(), SizeIs(1));
  StepAfter(50, {Answer(first, {0, 3, 1, 1, 2, 0, 0, 3, 1, 1, 2, 0})});  // too late, too old
  EXPECT_EQ(sink.report.stale_messages, 1u);
  EXPECT_THAT(All<SendPrepare>(), IsEmpty());
}

TEST_F(RebalancePlannerTest, EvenLoadsAskForNothing) {
  Step({Loads({20, 10, 20, 10, 20, 10, 20, 10})});
  StepAfter(5'000);
  EXPECT_THAT(sink.actions, IsEmpty());
}

TEST_F(RebalancePlannerTest, WatchdogRollsBackAndNamesTheRank) {
  BeginRebalance();
  Step({Prepared(0, 2)});
  EXPECT_EQ(planner.NextWake(), now + Duration::Millis(200));
  StepAfter(200);
  EXPECT_THAT(All<SendAbort>(), SizeIs(2));
  const RebalanceEnded ended = The<RebalanceEnded>();
  EXPECT_EQ(ended.end, RebalanceEnd::kRolledBack);
  EXPECT_EQ(ended.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(ended.status.message()),
              HasSubstr("rank(s) 1 have not prepared placement 2 within 0.2 s"));
  EXPECT_EQ(planner.active().version, 1u);
  Step({Prepared(1, 2), StepStarting{7}});  // too late
  EXPECT_EQ(sink.report.stale_messages, 1u);
  EXPECT_THAT(All<NameSwitch>(), IsEmpty());
  Step({RebalanceRequested{}});
  Step({Answer(The<ComputePlacement>(), {0, 3, 1, 1, 2, 0, 0, 3, 1, 1, 2, 0})});
  EXPECT_EQ(All<SendPrepare>()[0].message.target.version, 3u);  // 2 is never used again
}

TEST_F(RebalancePlannerTest, AFailedCopyRollsBack) {
  BeginRebalance();
  Step({PrepareEnded{1, 2, absl::ResourceExhaustedError("no memory")}});
  EXPECT_THAT(All<SendAbort>(), SizeIs(2));
  EXPECT_EQ(std::string(The<RebalanceEnded>().status.message()),
            "rank 1 could not prepare placement 2: no memory");
}

TEST_F(RebalancePlannerTest, AComputationThatNeverAnswersIsGivenUp) {
  Step({Uneven(), RebalanceRequested{}});
  StepAfter(100);
  EXPECT_EQ(The<RebalanceEnded>().status.code(), absl::StatusCode::kDeadlineExceeded);
  Step({RebalanceRequested{}});
  EXPECT_THAT(All<ComputePlacement>(), SizeIs(1));
}

class SmallRounds : public RebalancePlannerTest {
 protected:
  static RebalanceOptions Small() {
    RebalanceOptions options = Options();
    options.max_staged = 3;
    return options;
  }
  SmallRounds() : RebalancePlannerTest(Small()) {}
};

TEST_F(SmallRounds, LayersThatDoNotFitWaitForTheNextSwitch) {
  BeginRebalance();
  ASSERT_THAT(All<SendPrepare>(), SizeIs(2));
  EXPECT_THAT(All<SendPrepare>()[1].message.copies, SizeIs(3));
  const ExpertPlacement& mixed = *All<SendPrepare>()[1].message.target.placement;
  EXPECT_THAT(mixed.Slots(0), ElementsAre(0, 3, 1, 1, 2, 0));
  EXPECT_THAT(mixed.Slots(1), ElementsAre(0, 1, 0, 2, 3, 2));
  Step({Prepared(0, 2), Prepared(1, 2)});
  Step({StepStarting{5}});
  Step({StepStarting{6}});
  Step({StepStarting{7}});
  EXPECT_EQ(planner.active().version, 2u);
  EXPECT_THAT(All<RebalanceEnded>(), IsEmpty());
  ASSERT_THAT(All<SendPrepare>(), SizeIs(2));  // the second layer
  EXPECT_EQ(All<SendPrepare>()[0].message.target.version, 3u);
  Step({Prepared(0, 3), Prepared(1, 3)});
  Step({StepStarting{8}});
  Step({StepStarting{10}});
  EXPECT_EQ(The<RebalanceEnded>().copies, 10);
}

TEST_F(RebalancePlannerTest, WithoutCoverageTheGroupStops) {
  Step({GroupFormed{{true, false}, {true, false}, planner.active()}});
  EXPECT_EQ(The<StopGroup>().uncovered, 4);  // experts 2 and 3 of two layers
  EXPECT_EQ(sink.report.uncovered, 4);
  Step({Uneven(), RebalanceRequested{}});
  EXPECT_THAT(sink.actions, IsEmpty());
  EXPECT_EQ(planner.NextWake(), Tick::Infinite());
}

class Covered : public testing::Test {
 protected:
  // Every expert on both ranks.
  Covered() {
    options.topology.slots_per_rank = 4;
    options.survive_rank_loss = true;
    const auto placement = ExpertPlacement::FromSlots(
        options.topology, {0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0});
    EXPECT_TRUE(placement.ok());
    planner = std::make_unique<RebalancePlanner>(
        options, 0, ActiveExperts{4, std::make_shared<ExpertPlacement>(*placement), {true, true}},
        std::vector<bool>{true, true}, 9, now);
  }
  void Step(std::vector<RebalanceEvent> events) {
    sink.Clear();
    planner->Step(now, events, sink);
    planner->CheckInvariants();
  }

  RebalanceOptions options = Options();
  Tick now = Tick::FromNanos(5);
  std::unique_ptr<RebalancePlanner> planner;
  RebalanceSink sink;
};

TEST_F(Covered, ALostRankIsMaskedAndTakenBackIn) {
  Step({GroupFormed{{true, false}, {true, false}, planner->active()}});
  EXPECT_EQ(sink.report.masked, 1);
  EXPECT_EQ(sink.report.uncovered, 0);
  EXPECT_EQ(sink.report.on_one_rank, 8);
  // One rank has no slots to protect anybody; what is computed changes nothing.
  ASSERT_EQ(sink.actions.size(), 1u);
  const auto compute = std::get<ComputePlacement>(sink.actions[0]);
  EXPECT_THAT(compute.request->live, ElementsAre(true, false));
  Step({PlacementComputed{compute.ticket, PlaceExperts(*compute.request)}});
  ASSERT_EQ(sink.actions.size(), 1u);
  EXPECT_EQ(std::get<RebalanceEnded>(sink.actions[0]).end, RebalanceEnd::kNotWorth);

  // It comes back with empty slots: all of its experts are copied before tokens go to it.
  Step({GroupFormed{{true, true}, {true, false}, planner->active()}});
  ASSERT_EQ(sink.actions.size(), 2u);
  const auto own = std::get<SendPrepare>(sink.actions[0]);
  const auto other = std::get<SendPrepare>(sink.actions[1]);
  EXPECT_THAT(own.message.copies, IsEmpty());
  EXPECT_THAT(other.message.copies, SizeIs(8));
  EXPECT_EQ(other.message.copies[0], (ExpertCopy{0, 4, 3, 0}));
  EXPECT_EQ(other.message.target.version, 9u);
  EXPECT_THAT(other.message.target.live, ElementsAre(true, true));
  EXPECT_EQ(sink.report.masked, 1);
  Step({PrepareEnded{0, 9, {}}, PrepareEnded{1, 9, {}}, StepStarting{20}});
  Step({StepStarting{21}, StepStarting{22}});
  EXPECT_EQ(std::get<RankRestored>(sink.actions[0]).rank, 1);
  EXPECT_EQ(sink.report.restored, 1u);
  EXPECT_EQ(sink.report.masked, 0);
}

// What was computed without a rank need not survive the loss of another; with it back there are
// slots for that again.
TEST_F(Covered, ARankThatIsBackProtectsTheOthersExperts) {
  const auto alone = ExpertPlacement::FromSlots(options.topology,
                                                {0, 1, 2, 3, 3, 3, 3, 3, 0, 1, 2, 3, 3, 3, 3, 3});
  planner = std::make_unique<RebalancePlanner>(
      options, 0, ActiveExperts{4, std::make_shared<ExpertPlacement>(*alone), {true, false}},
      std::vector<bool>{true, false}, 9, now);
  Step({});
  const auto vain = std::get<ComputePlacement>(sink.actions.at(0));
  Step({PlacementComputed{vain.ticket, PlaceExperts(*vain.request)}});
  Step({GroupFormed{{true, true}, {true, false}, planner->active()}});
  Step({PrepareEnded{0, 9, {}}, PrepareEnded{1, 9, {}}, StepStarting{20}});
  Step({StepStarting{21}, StepStarting{22}});
  ASSERT_EQ(sink.actions.size(), 2u);
  const auto compute = std::get<ComputePlacement>(sink.actions[1]);
  EXPECT_THAT(compute.request->live, IsEmpty());
  // Not in vain, however little it gains; and tried again where it fails.
  Step({PlacementComputed{compute.ticket, absl::InternalError("no memory")}});
  EXPECT_EQ(std::get<RebalanceEnded>(sink.actions.at(0)).end, RebalanceEnd::kRolledBack);
  EXPECT_EQ(planner->NextWake(), now + options.restore_retry);
  now = planner->NextWake();
  Step({});
  const auto again = std::get<ComputePlacement>(sink.actions.at(0));
  Step({PlacementComputed{again.ticket, PlaceExperts(*again.request)}});
  EXPECT_THAT(sink.actions, SizeIs(2));
  EXPECT_EQ(sink.actions[0].index(), 1u);  // SendPrepare
}

TEST_F(Covered, ARankThatCannotBeRestoredIsTriedAgainLater) {
  Step({GroupFormed{{true, true}, {true, false}, planner->active()}});
  Step({PrepareEnded{1, 9, absl::UnavailableError("source gone")}});
  EXPECT_EQ(sink.report.rollbacks, 1u);
  now = now + Duration::Millis(100);  // nor is the placement computed that the loss asked for
  Step({});
  const auto restarts = std::count_if(sink.actions.begin(), sink.actions.end(),
                                      [](const auto& a) { return a.index() == 1; });
  EXPECT_EQ(restarts, 2);
}

TEST_F(Covered, AGroupThatHasAgreedToSwitchHasSwitched) {
  const auto loads = std::make_shared<std::vector<double>>(8, 1.0);
  Step({GroupFormed{
      {true, true}, {true, false}, planner->active()}});  // rank 1 is to be restored as version 9
  Step({PrepareEnded{0, 9, {}}, PrepareEnded{1, 9, {}}, StepStarting{20}});
  ActiveExperts agreed = planner->active();
  agreed.version = 9;
  Step({LoadsMeasured{loads}, GroupFormed{{true, true}, {true, true}, agreed}});
  EXPECT_EQ(planner->active().version, 9u);
  EXPECT_THAT(planner->active().live, ElementsAre(true, true));
}

// --- ResolveSwitch and ExpertSlots ----------------------------------------------------------

TEST(ResolveSwitch, BackUnlessSomeRankHasSwitched) {
  const auto decide = [](std::vector<SwitchState> states, bool forward = false) {
    const auto decision = ResolveSwitch(states, forward);
    EXPECT_TRUE(decision.ok()) << decision.status();
    return std::pair(decision->version, decision->next_version);
  };
  EXPECT_EQ(decide({{3, 0, false}, {3, 0, false}}), std::pair(uint64_t{3}, uint64_t{4}));
  EXPECT_EQ(decide({{3, 7, true}, {3, 7, true}}), std::pair(uint64_t{3}, uint64_t{8}));
  EXPECT_EQ(decide({{3, 7, true}, {7, 0, false}}), std::pair(uint64_t{7}, uint64_t{8}));
  EXPECT_EQ(decide({{3, 7, true}, {3, 7, true}}, true), std::pair(uint64_t{7}, uint64_t{8}));
  EXPECT_EQ(decide({{3, 7, true}, {3, 7, false}}, true), std::pair(uint64_t{3}, uint64_t{8}));
  const std::vector<SwitchState> broken = {{3, 7, false}, {7, 0, false}};
  EXPECT_EQ(ResolveSwitch(broken, false).status().code(), absl::StatusCode::kInternal);
}

TEST(ExpertSlots, UsesCopiesFromTheNamedStepOn) {
  ExpertSlots slots(1, 0, First(), true);
  PrepareExperts prepare;
  prepare.target = {
      2,
      std::make_shared<ExpertPlacement>(Placement({0, 1, 2, 2, 3, 0, 0, 1, 0, 2, 3, 2})),
      {true, true}};
  EXPECT_EQ(slots.Prepare(prepare).code(), absl::StatusCode::kInvalidArgument);  // no copies
  prepare.copies = {{0, 5, 0, 0}};
  prepare.leader = 1;
  EXPECT_EQ(slots.Prepare(prepare).code(), absl::StatusCode::kFailedPrecondition);
  prepare.leader = 0;
  ASSERT_TRUE(slots.Prepare(prepare).ok());
  EXPECT_EQ(slots.Prepare(prepare).code(), absl::StatusCode::kFailedPrecondition);  // the same
  EXPECT_FALSE(slots.prepared(2));
  EXPECT_EQ(slots.BeginStep(4, {2, 5}).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(slots.CopyDone(2, 0, 4));
  EXPECT_TRUE(slots.CopyDone(2, 0, 5));
  EXPECT_FALSE(slots.CopyDone(2, 0, 5));
  EXPECT_TRUE(slots.prepared(2));
  ASSERT_TRUE(slots.BeginStep(4, {2, 5}).ok());
  EXPECT_EQ(slots.Held(0, 5), 2);
  EXPECT_EQ(slots.active().version, 1u);
  ASSERT_TRUE(slots.BeginStep(5, {}).ok());
  EXPECT_EQ(slots.Held(0, 5), 0);
  EXPECT_EQ(slots.active().version, 2u);
  EXPECT_EQ(slots.staged(), 0);
}

TEST(ExpertSlots, NoticesAMissedSwitch) {
  ExpertSlots slots(0, 0, First(), true);
  PrepareExperts prepare;
  prepare.target = First();
  prepare.target.version = 2;
  ASSERT_TRUE(slots.Prepare(prepare).ok());
  ASSERT_TRUE(slots.BeginStep(4, {2, 6}).ok());
  const absl::Status missed = slots.BeginStep(7, {});
  EXPECT_EQ(missed.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(missed.message()), HasSubstr("has missed the switch at step 6"));
}

TEST(PlanCopies, SpreadsSourcesAndPrefersTheRankItselfThenItsNode) {
  ExpertTopology topology;
  topology.layers = 1;
  topology.experts = 4;
  topology.ranks = 4;
  topology.slots_per_rank = 2;
  topology.ranks_per_node = 2;
  const auto from = ExpertPlacement::FromSlots(topology, {0, 1, 0, 2, 0, 3, 0, 1});
  const auto to = ExpertPlacement::FromSlots(topology, {1, 0, 0, 1, 2, 3, 3, 1});
  ASSERT_TRUE(from.ok() && to.ok());
  const std::vector<bool> all(4, true);
  const auto copies = PlanCopies(topology, *from, *to, all, all);
  EXPECT_THAT(copies[0], ElementsAre(ExpertCopy{0, 0, 1, 0}, ExpertCopy{0, 1, 0, 0}));
  EXPECT_THAT(copies[1], ElementsAre(ExpertCopy{0, 3, 1, 0}));
  EXPECT_THAT(copies[2], ElementsAre(ExpertCopy{0, 4, 2, 1}));
  EXPECT_THAT(copies[3], ElementsAre(ExpertCopy{0, 6, 3, 2}));
  const auto without_1 = PlanCopies(topology, *from, *to, {true, false, true, true}, all);
  EXPECT_THAT(without_1[1], SizeIs(2));  // its slots hold nothing any more
  EXPECT_EQ(without_1[2][0].source, kFromCheckpoint);
}

}  // namespace
}  // namespace baton::scheduler
