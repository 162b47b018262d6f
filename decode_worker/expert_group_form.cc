// ExpertGroup, continued: how the ranks find each other, at first, after one was lost, and to take
// one back in.

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "decode_worker/expert_group.h"
#include "scheduler/expert_routing.h"

namespace baton::decode_worker {
namespace {

using scheduler::ActiveExperts;

// One wait for the others, after which an interruption is noticed. Longer than a rank that knows
// them to be in a group already waits before it knocks at their doors.
constexpr Duration kFirstWait = Duration::Seconds(3);
// Between attempts to take in a rank that knocked and then did not come.
constexpr Duration kKnockAgain = Duration::Seconds(5);

std::vector<int> Union(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> all;
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(all));
  return all;
}

int32_t LowestOf(const std::vector<bool>& ranks) {
  return static_cast<int32_t>(std::find(ranks.begin(), ranks.end(), true) - ranks.begin());
}

}  // namespace

// --- when -----------------------------------------------------------------------------------

absl::Status ExpertGroup::FormFirst() {
  const Tick deadline = clock_.Now() + options_.form_timeout;
  while (true) {  // until the deadline
    const Duration left = deadline - clock_.Now();
    absl::Status status = Form({}, std::min(kFirstWait, std::max(left, Duration::Millis(1))));
    if (status.ok()) return status;
    if (!failed_.ok()) return failed_;
    if (interrupted_.load()) return absl::CancelledError("interrupted while the group formed");
    // Refused, or a mistake: waiting would not mend it. A group that broke while it formed would.
    const bool again = absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
    if (!again || clock_.Now() >= deadline) return Fail(status);
  }
}

absl::Status ExpertGroup::Recover() {
  // Each round but the last one loses a rank.
  for (int32_t round = 0; round < ranks(); ++round) {
    const absl::Status why = seat_.health();
    if (interrupted_.load()) return Fail(why);  // all go
    const std::vector<int> lost = seat_.lost_ranks();
    if (lost.empty()) return Fail(why);
    const std::vector<int> absent = Union(absent_, lost);
    const bool fenced = std::binary_search(absent.begin(), absent.end(), rank());
    const std::vector<bool> present = Present();
    const auto before = std::count(present.begin(), present.end(), true);
    const auto left = ranks() - static_cast<int64_t>(absent.size());
    // Who misses most of the others is more likely the one that they miss.
    if (fenced || 2 * left < before) {
      return Fail(absl::UnavailableError(
          absl::StrCat("the group goes on without rank ", rank(), ": ", why.message())));
    }
    report_.lost += static_cast<uint32_t>(absent.size() - absent_.size());
    log_.Warning("the group has lost ranks",
                 {{"lost", absl::StrJoin(lost, ",")}, {"cause", why.ToString()}});
    absl::Status formed = Form(absent, options_.reform_timeout);
    if (formed.ok()) return formed;
    if (!failed_.ok() || !seat_.taken()) return Fail(formed);
  }
  return Fail(absl::UnavailableError("the group lost rank after rank"));
}

// As the leader has told all ranks.
absl::Status ExpertGroup::Admit() {
  const std::vector<int> before = absent_;
  const std::vector<int> absent = std::exchange(form_anew_, std::nullopt)->absent;
  absl::Status formed = Form(absent, options_.reform_timeout);
  if (!formed.ok() && failed_.ok() && !seat_.taken()) {
    log_.Warning("a rank that came back went again", {{"cause", formed.ToString()}});
    next_knock_ = clock_.Now() + kKnockAgain;
    formed = Form(before, options_.reform_timeout);
  }
  if (formed.ok()) return formed;
  return failed_.ok() && seat_.taken() ? Recover() : Fail(formed);
}

absl::Status ExpertGroup::Fail(absl::Status why) {
  if (!failed_.ok()) return failed_;
  failed_ = std::move(why);
  if (!interrupted_.load()) {
    log_.Error("this rank has left its group", {{"cause", failed_.ToString()}});
  }
  seat_.Leave();
  copier_.Drop();
  return failed_;
}

// --- how ------------------------------------------------------------------------------------

// Where it fails, this rank has failed, or the ranks have not found each other (the seat is not
// taken then), or the group has broken again.
absl::Status ExpertGroup::Form(const std::vector<int>& absent, Duration timeout) {
  seat_.Leave();
  for (std::vector<std::byte>& of_rank : mail_) of_rank.clear();  // from before
  form_anew_.reset();
  transport::GroupOptions options = options_.group;
  options.absent_ranks = absent;
  options.timeout = timeout;
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<transport::Collectives> group, rendezvous_.Join(options));
  seat_.Take(std::move(group));
  absent_ = absent;
  BATON_RETURN_IF_ERROR(Agree());
  log_.Info("the group stands", {{"generation", seat_.generation()},
                                 {"absent", absl::StrJoin(absent_, ",")},
                                 {"leader", leader_},
                                 {"placement", slots_->active().version}});
  return absl::OkStatus();
}

// All ranks say where they stand and draw the same conclusions.
absl::Status ExpertGroup::Agree() {
  Standing mine;
  mine.step = step_;
  if (formed()) {
    mine.state = slots_->state();
    mine.has_slots = 1;
  }
  std::vector<Standing> standings(static_cast<size_t>(ranks()));
  BATON_RETURN_IF_ERROR(seat_.AllGather(std::as_bytes(std::span(&mine, 1)),
                                        std::as_writable_bytes(std::span(standings)),
                                        options_.timeout));
  bool any = false;
  for (const Standing& standing : standings) {
    step_ = std::max(step_, standing.step);
    any = any || standing.has_slots != 0;
  }
  ++step_;
  uncounted_steps_ = 0;
  events_.clear();
  copier_.Drop();
  const absl::Status begun = any ? GoOn(standings) : BeginAnew();
  return begun.ok() || !seat_.health().ok() ? begun : Fail(begun);
}

// A new group: experts lie as for even loads.
absl::Status ExpertGroup::BeginAnew() {
  BATON_CHECK(absent_.empty());
  scheduler::PlacementRequest request;
  request.topology = topology_;
  request.loads.assign(choices_.size(), 1.0);
  request.policy = options_.rebalance.policy;
  request.survive_rank_loss = options_.rebalance.survive_rank_loss;
  BATON_ASSIGN_OR_RETURN(scheduler::PlacementResult placed, scheduler::PlaceExperts(request));
  ActiveExperts active{
      .version = 1,
      .placement = std::make_shared<const scheduler::ExpertPlacement>(std::move(placed.placement)),
      .live = std::vector<bool>(static_cast<size_t>(ranks()), true)};
  leader_ = 0;
  slots_.emplace(rank(), leader_, std::move(active), /*loaded=*/true);
  return TakeOver(2, Present());
}

// Some ranks have been here before, and go on with one of their placements; others have just come.
absl::Status ExpertGroup::GoOn(const std::vector<Standing>& standings) {
  std::vector<bool> stayed;
  std::vector<scheduler::SwitchState> states;
  for (const Standing& standing : standings) {
    stayed.push_back(standing.has_slots != 0);
    if (stayed.back()) states.push_back(standing.state);
  }
  uint64_t next_version = 0;
  if (formed()) {
    const auto uncovered = [&stayed](const ActiveExperts& experts) {
      std::vector<bool> live = experts.live;
      for (size_t r = 0; r < live.size(); ++r) live[r] = live[r] && stayed[r];
      return scheduler::CountUncovered(*experts.placement, live);
    };
    const ActiveExperts& target = slots_->target();
    const bool forward = target.version > 0 && uncovered(target) < uncovered(slots_->active());
    BATON_ASSIGN_OR_RETURN(const scheduler::SwitchDecision decision,
                           scheduler::ResolveSwitch(states, forward));
    next_version = decision.next_version;
    const ActiveExperts& chosen =
        decision.version == slots_->active().version ? slots_->active() : target;
    std::vector<bool> live = stayed;
    for (size_t r = 0; r < live.size(); ++r) live[r] = live[r] && chosen.live[r];
    leader_ = LowestOf(live);  // nobody: then experts are uncovered, too
    BATON_RETURN_IF_ERROR(slots_->Reform(decision.version, leader_, stayed));
  }
  if (stayed != Present()) BATON_RETURN_IF_ERROR(TellReturned(LowestOf(stayed)));
  const ActiveExperts& active = slots_->active();
  const int32_t uncovered = scheduler::CountUncovered(*active.placement, active.live);
  if (uncovered > 0) {
    // All find the same, so that nobody takes those who leave first for lost.
    return Fail(absl::UnavailableError(absl::StrCat(
        uncovered, " experts have no replica on the ranks that are left; the group cannot go on")));
  }
  return TakeOver(next_version, stayed);
}

// `teller` tells those who have just come what the group uses. All ranks call it.
absl::Status ExpertGroup::TellReturned(int32_t teller) {
  std::vector<std::byte> bytes;
  if (rank() == teller) {
    ByteWriter out;
    out.Put(leader_);
    PutActive(slots_->active(), out);
    bytes = out.Take();
  }
  uint64_t size = bytes.size();
  BATON_RETURN_IF_ERROR(
      seat_.Broadcast(std::as_writable_bytes(std::span(&size, 1)), teller, options_.timeout));
  constexpr uint64_t kMaxBytes = uint64_t{1} << 28;
  if (size > kMaxBytes) {
    return absl::InternalError(absl::StrCat("a placement of ", size, " bytes was announced"));
  }
  bytes.resize(static_cast<size_t>(size));
  BATON_RETURN_IF_ERROR(seat_.Broadcast(bytes, teller, options_.timeout));
  if (formed()) return absl::OkStatus();
  ByteReader in(bytes);
  const int32_t leader = in.Take<int32_t>();
  BATON_ASSIGN_OR_RETURN(ActiveExperts active, TakeActive(in, topology_));
  if (!in.done() || leader < 0 || leader >= ranks() || active.version == 0 ||
      active.live[static_cast<size_t>(rank())]) {
    return absl::InternalError("the group's placement came damaged");
  }
  leader_ = leader;
  slots_.emplace(rank(), leader, std::move(active), /*loaded=*/false);
  return absl::OkStatus();
}

// What slots_ says is in use from here on.
absl::Status ExpertGroup::TakeOver(uint64_t next_version, const std::vector<bool>& stayed) {
  const ActiveExperts& active = slots_->active();
  if (leader_ != rank()) {
    planner_.reset();
  } else if (leads()) {
    events_.emplace_back(scheduler::GroupFormed{Present(), stayed, active});
    StepPlanner();
  } else {
    scheduler::RebalanceOptions options = options_.rebalance;
    options.topology = topology_;
    planner_.emplace(options, rank(), active, Present(), next_version, clock_.Now());
    if (loads_ != nullptr) events_.emplace_back(scheduler::LoadsMeasured{loads_});
  }
  next_knock_ = clock_.Now() + options_.knock_interval;
  return Install();
}

}  // namespace baton::decode_worker
