// A whole group under random events: loads, requests, slow and failing copies, lost and late
// messages, ranks (the leader too) that die in the middle of anything and come back empty. What
// must hold at every step:
//  1. all ranks of a step use the same version, placement and mask, and were told so before it;
//  2. no token may go to a slot whose weights are not in place on its rank;
//  3. every expert has a live replica, or the group has stopped and counted it uncovered.
// And in the end, once nothing fails any more: all ranks are back in, and a rebalance ends.

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/expert_routing.h"
#include "scheduler/rebalance_planner.h"

namespace baton::scheduler {
namespace {

struct Totals {
  int64_t installed = 0, not_worth = 0, rolled_back = 0, refused = 0;
  int64_t switches = 0, restored = 0, stopped = 0, forward = 0, steps = 0, takeovers = 0;
};

struct Rank {
  std::unique_ptr<ExpertSlots> slots;  // null: dead
  PrepareExperts work;                 // the copies under way; version 0: none
  int work_of = 0;                     // formation of the group in which the work was asked for
};

struct Message {
  Tick at;
  std::function<void()> deliver;
};

class Group {
 public:
  Group(uint64_t seed, Totals& totals) : rng(seed), totals(totals) {
    options.topology.layers = 3;
    options.topology.experts = 6;
    options.topology.ranks = 4;
    options.topology.slots_per_rank = 3;
    options.topology.ranks_per_node = rng.Chance(0.5) ? 2 : 0;
    options.survive_rank_loss = rng.Chance(0.8);
    options.max_staged = 1 + static_cast<int32_t>(rng.Below(6));
    options.switch_lead_steps = 1 + static_cast<int32_t>(rng.Below(3));
    options.interval = Duration::Millis(200);
    options.compute_timeout = Duration::Millis(40);
    options.prepare_timeout = Duration::Millis(60);
    options.restore_retry = Duration::Millis(20);
    StartAnew();
  }

  void Run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      Advance();
      if (rng.Chance(0.1)) pending.push_back(Loads());
      if (rng.Chance(0.02)) pending.push_back(RebalanceRequested{});
      if (rng.Chance(0.02)) KillSomebody();
      if (rng.Chance(0.06)) BringSomebodyBack();
      if (rng.Chance(0.8)) {
        RunStep();
      } else {
        StepPlanner({});
      }
    }
  }

  // Nothing fails any more.
  void Settle() {
    faults = false;
    for (int32_t r = 0; r < options.topology.ranks; ++r) {
      if (ranks[r].slots == nullptr) BringBack(r);
    }
    for (int i = 0; i < 400; ++i) {
      Advance();
      RunStep();
    }
    EXPECT_EQ(planner->active().live, std::vector<bool>(options.topology.ranks, true));
    const int64_t before = totals.installed + totals.not_worth;
    pending.push_back(Loads());
    pending.push_back(RebalanceRequested{});
    for (int i = 0; i < 400; ++i) {
      Advance();
      RunStep();
    }
    EXPECT_GT(totals.installed + totals.not_worth, before);
  }

 private:
  void StartAnew() {
    PlacementRequest request;
    request.topology = options.topology;
    request.loads.assign(options.topology.layers * options.topology.experts, 1.0);
    request.survive_rank_loss = options.survive_rank_loss;
    const auto placed = PlaceExperts(request);
    ASSERT_TRUE(placed.ok()) << placed.status();
    const ActiveExperts first{1, std::make_shared<ExpertPlacement>(placed->placement),
                              std::vector<bool>(options.topology.ranks, true)};
    ranks.clear();
    ranks.resize(options.topology.ranks);
    for (int32_t r = 0; r < options.topology.ranks; ++r) {
      ranks[r].slots = std::make_unique<ExpertSlots>(r, 0, first, true);
    }
    mail.clear();
    pending.clear();
    leader = 0;
    ++terms;
    planner = std::make_unique<RebalancePlanner>(options, 0, first, Present(), 2, now);
  }

  std::vector<bool> Present() const {
    std::vector<bool> present;
    for (const Rank& rank : ranks) present.push_back(rank.slots != nullptr);
    return present;
  }

  LoadsMeasured Loads() {
    std::vector<double> loads;
    for (int32_t i = 0; i < options.topology.layers * options.topology.experts; ++i) {
      loads.push_back(static_cast<double>(rng.Below(rng.Chance(0.3) ? 1000 : 50)));
    }
    return {std::make_shared<std::vector<double>>(std::move(loads))};
  }

  // --- messages and copies -----------------------------------------------------------------

  void Post(std::function<void()> deliver) {
    if (faults && rng.Chance(0.03)) return;  // lost
    const int64_t delay_ms = static_cast<int64_t>(rng.Below(faults && rng.Chance(0.1) ? 80 : 5));
    mail.push_back({now + Duration::Millis(delay_ms), std::move(deliver)});
  }

  void Advance() {
    now = now + Duration::Micros(static_cast<int64_t>(rng.Below(3000)));
    std::vector<Message> due;
    for (size_t i = 0; i < mail.size();) {
      if (mail[i].at > now) {
        ++i;
        continue;
      }
      due.push_back(std::move(mail[i]));
      mail.erase(mail.begin() + static_cast<ptrdiff_t>(i));
    }
    for (Message& message : due) message.deliver();
    for (int32_t r = 0; r < options.topology.ranks; ++r) CopySome(r);
  }

  void Tell(int32_t from, uint64_t version, absl::Status status) {
    Post([this, from, version, status] { pending.push_back(PrepareEnded{from, version, status}); });
  }

  void Receive(int32_t r, const PrepareExperts& message, int of) {
    if (ranks[r].slots == nullptr) return;
    const absl::Status accepted = ranks[r].slots->Prepare(message);
    if (!accepted.ok()) {
      Tell(r, message.target.version, accepted);
      return;
    }
    ranks[r].work = message;
    ranks[r].work_of = of;
    if (message.copies.empty()) Tell(r, message.target.version, absl::OkStatus());
  }

  // A source must hold the expert in a slot in use for as long as somebody may copy from it.
  bool SourceHolds(const ExpertCopy& copy) const {
    if (copy.source == kFromCheckpoint) return true;
    const ExpertSlots* const source = ranks[copy.source].slots.get();
    if (source == nullptr) return false;
    const int32_t per_rank = options.topology.slots_per_rank;
    for (int32_t s = copy.source * per_rank; s < (copy.source + 1) * per_rank; ++s) {
      if (source->Held(copy.layer, s) == copy.expert) return true;
    }
    return false;
  }

  void CopySome(int32_t r) {
    Rank& rank = ranks[r];
    while (rank.slots != nullptr && !rank.work.copies.empty() && rng.Chance(0.7)) {
      const uint64_t version = rank.work.target.version;
      const size_t pick = rng.Below(rank.work.copies.size());
      const ExpertCopy copy = rank.work.copies[pick];
      // Only a message from before the group's ranks changed may name a source that lacks the
      // expert.
      ASSERT_TRUE(SourceHolds(copy) || rank.work_of != formations) << "rank " << copy.source;
      if (!SourceHolds(copy) || (faults && rng.Chance(0.01))) {
        rank.slots->Abort(version);
        rank.work = {};
        Tell(r, version, absl::UnavailableError("copy failed"));
        return;
      }
      rank.work.copies.erase(rank.work.copies.begin() + static_cast<ptrdiff_t>(pick));
      const bool wanted = rank.slots->CopyDone(version, copy.layer, copy.slot);
      if (!wanted) {
        rank.work = {};
        return;
      }
      ASSERT_LE(rank.slots->staged(), MaxStaged(r));
      if (rank.slots->prepared(version)) Tell(r, version, absl::OkStatus());
    }
  }

  // A live rank never keeps more copies than allowed, save for a single layer; an empty one fills
  // its slots.
  int32_t MaxStaged(int32_t r) const {
    const int32_t layer = options.topology.slots_per_rank;
    return ranks[r].slots->active().live[r] ? std::max(options.max_staged, layer)
                                            : layer * options.topology.layers;
  }

  // --- the planner ---------------------------------------------------------------------------

  // Returns the notice for the step's header.
  SwitchNotice StepPlanner(std::vector<RebalanceEvent> events) {
    events.insert(events.begin(), pending.begin(), pending.end());
    pending.clear();
    RebalanceSink sink;
    planner->Step(now, events, sink);
    planner->CheckInvariants();
    totals.switches += sink.report.switches;
    totals.restored += sink.report.restored;
    SwitchNotice notice;
    bool stop = false;
    for (const RebalanceAction& action : sink.actions) {
      std::visit([&](const auto& a) { Carry(a, notice, stop); }, action);
    }
    EXPECT_EQ(sink.report.uncovered > 0, stop);
    if (stop) {
      ++totals.stopped;
      StartAnew();
      return {};
    }
    return notice;
  }

  void Carry(const ComputePlacement& compute, SwitchNotice&, bool&) {
    Post([this, compute, of = terms] {
      if (of != terms) return;  // a leader's answers are lost with it
      pending.push_back(PlacementComputed{compute.ticket, PlaceExperts(*compute.request)});
    });
  }
  void Carry(const SendPrepare& send, SwitchNotice&, bool&) {
    Post([this, send, of = formations] { Receive(send.rank, send.message, of); });
  }
  void Carry(const SendAbort& send, SwitchNotice&, bool&) {
    Post([this, send] {
      if (ranks[send.rank].slots != nullptr) ranks[send.rank].slots->Abort(send.message.version);
    });
  }
  void Carry(const NameSwitch& name, SwitchNotice& notice, bool&) { notice = name.notice; }
  void Carry(const RankRestored& restored, SwitchNotice&, bool&) {
    EXPECT_TRUE(ranks[restored.rank].slots->active().live[restored.rank]);
  }
  void Carry(const StopGroup&, SwitchNotice&, bool& stop) { stop = true; }
  void Carry(const RebalanceEnded& ended, SwitchNotice&, bool&) {
    totals.installed += ended.end == RebalanceEnd::kInstalled;
    totals.not_worth += ended.end == RebalanceEnd::kNotWorth;
    totals.rolled_back += ended.end == RebalanceEnd::kRolledBack;
    totals.refused += ended.end == RebalanceEnd::kRefused;
  }

  // --- steps ---------------------------------------------------------------------------------

  void RunStep() {
    ++step;
    const SwitchNotice notice = StepPlanner({StepStarting{step}});
    // Sometimes a rank dies while headers travel: some ranks have them all, some do not, and the
    // step never completes.
    if (faults && rng.Chance(0.02)) {
      for (Rank& rank : ranks) {
        const bool has_headers = rng.Chance(0.5);
        if (rank.slots != nullptr && has_headers) BeginStep(rank, notice);
      }
      KillSomebody();
      return;
    }
    for (Rank& rank : ranks) {
      if (rank.slots != nullptr) BeginStep(rank, notice);
    }
    ++totals.steps;
    CheckStep();
  }

  void BeginStep(Rank& rank, const SwitchNotice& notice) {
    const absl::Status begun = rank.slots->BeginStep(step, notice);
    ASSERT_TRUE(begun.ok()) << begun;
  }

  void CheckStep() const {
    const ActiveExperts& used = ranks[leader].slots->active();
    ASSERT_EQ(CountUncovered(*used.placement, used.live), 0);
    for (int32_t r = 0; r < options.topology.ranks; ++r) {
      if (ranks[r].slots == nullptr) {
        ASSERT_FALSE(used.live[r]);
        continue;
      }
      const ActiveExperts& own = ranks[r].slots->active();
      ASSERT_EQ(own.version, used.version);
      ASSERT_EQ(*own.placement, *used.placement);
      ASSERT_EQ(own.live, used.live);
      for (int32_t l = 0; used.live[r] && l < options.topology.layers; ++l) {
        for (int32_t s = 0; s < used.placement->slots(); ++s) {
          if (used.placement->rank_of(s) != r) continue;
          ASSERT_EQ(ranks[r].slots->Held(l, s), used.placement->Slots(l)[s]);
        }
      }
    }
  }

  // --- ranks that come and go ----------------------------------------------------------------

  void KillSomebody() {
    const int32_t r = static_cast<int32_t>(rng.Below(options.topology.ranks));
    ranks[r] = {};  // or only a step has failed
    FormGroup(-1);
  }

  void BringSomebodyBack() {
    const int32_t r = static_cast<int32_t>(rng.Below(options.topology.ranks));
    if (ranks[r].slots == nullptr) BringBack(r);
  }
  void BringBack(int32_t r) { FormGroup(r); }

  // All present ranks say where they stand, decide alike and go on; `joining` comes in empty.
  void FormGroup(int32_t joining) {
    ++formations;
    std::vector<SwitchState> states;
    for (const Rank& rank : ranks) {
      if (rank.slots != nullptr) states.push_back(rank.slots->state());
    }
    const std::vector<bool> stayed = Present();
    const auto is_live = [&](int32_t r) { return stayed[r] && ranks[r].slots->active().live[r]; };
    int32_t new_leader = 0;
    while (new_leader < options.topology.ranks && !is_live(new_leader)) ++new_leader;
    if (new_leader == options.topology.ranks) {  // nobody holds anything any more
      ++totals.stopped;
      return StartAnew();
    }
    const auto decision = ResolveSwitch(states, rng.Chance(0.5));
    ASSERT_TRUE(decision.ok()) << decision.status();
    for (Rank& rank : ranks) {
      if (rank.slots == nullptr) continue;
      totals.forward += rank.slots->active().version != decision->version;
      const absl::Status formed = rank.slots->Reform(decision->version, new_leader, stayed);
      ASSERT_TRUE(formed.ok()) << formed;
      rank.work = {};
    }
    const ActiveExperts active = ranks[new_leader].slots->active();
    if (joining >= 0) {
      ranks[joining].slots = std::make_unique<ExpertSlots>(joining, new_leader, active, false);
    }
    if (new_leader == leader) {
      pending.push_back(GroupFormed{Present(), stayed, active});
      StepPlanner({});
      return;
    }
    ++totals.takeovers;
    if (CountUncovered(*active.placement, active.live) > 0) {
      ++totals.stopped;
      return StartAnew();
    }
    leader = new_leader;
    ++terms;
    pending.clear();
    planner = std::make_unique<RebalancePlanner>(options, leader, active, Present(),
                                                 decision->next_version, now);
  }

  Rng rng;
  Totals& totals;
  RebalanceOptions options;
  Tick now = Tick::FromNanos(1);
  uint64_t step = 0;
  bool faults = true;
  int32_t leader = 0;
  int terms = 0;       // of leaders
  int formations = 0;  // of the group
  std::vector<Rank> ranks;
  std::vector<Message> mail;
  std::vector<RebalanceEvent> pending;
  std::unique_ptr<RebalancePlanner> planner;
};

TEST(RebalanceProperty, AllRanksSwitchTogetherOrNotAtAll) {
  Totals totals;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Group group(seed, totals);
    group.Run(400);
    if (HasFatalFailure()) return;
    group.Settle();
    if (HasFailure()) return;
  }
  // Everything that may happen has happened.
  EXPECT_GT(totals.installed, 100);
  EXPECT_GT(totals.not_worth, 10);
  EXPECT_GT(totals.rolled_back, 100);
  EXPECT_GT(totals.refused, 10);
  EXPECT_GT(totals.restored, 100);
  EXPECT_GT(totals.stopped, 10);
  EXPECT_GT(totals.forward, 10);
  EXPECT_GT(totals.takeovers, 10);
  EXPECT_GT(totals.switches, totals.installed);
  EXPECT_GT(totals.steps, 10'000);
}

}  // namespace
}  // namespace baton::scheduler
