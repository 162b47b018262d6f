// ExpertGroup, continued: how the ranks find each other, at first, after one was lost, and to take
// one back in.

#include <algorithm>
#include <iterator>
#include <span>
#include <string>
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
// Of ExpertGroupOptions::reform_timeout, for one formation.
constexpr int64_t kMostPatience = 3;
// Who waits for whom is said again after this time.
constexpr Duration kTellAgain = Duration::Seconds(15);
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
  std::string told;
  Tick tell_again;
  while (true) {  // until the deadline
    const Duration left = deadline - clock_.Now();
    absl::Status status = Form({}, std::min(kFirstWait, std::max(left, Duration::Millis(1))));
    if (status.ok()) return status;
    if (!failed_.ok()) return failed_;
    if (interrupted_.load()) return absl::CancelledError("interrupted while the group formed");
    // Refused, or a mistake: waiting would not mend it. A group that broke while it formed would.
    const bool again = absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
    const Tick now = clock_.Now();
    if (!again || now >= deadline) return Fail(status);
    const std::string waiting(status.message());
    if (waiting == told && now < tell_again) continue;
    log_.Info("waiting for the other ranks", {{"status", waiting}});
    told = waiting;
    tell_again = now + kTellAgain;
  }
}

absl::Status ExpertGroup::Recover() {
  // Each round but the last one loses a rank.
  for (int32_t round = 0; round < ranks(); ++round) {
    BATON_RETURN_IF_ERROR(CheckOwnPlace(seat_.health()));
    const uint64_t generation = seat_.generation();
    absl::Status formed = Form({}, options_.reform_timeout * kMostPatience);
    if (formed.ok()) return formed;
    const bool broke_again = seat_.generation() != generation;
    if (!failed_.ok() || !broke_again) return Fail(formed);
  }
  return Fail(absl::UnavailableError("the group lost rank after rank"));
}

// The group has broken: whether this rank is one of those who may form it anew. DecideQuorum has
// the last word; here it leaves where it would only hold up the others.
absl::Status ExpertGroup::CheckOwnPlace(const absl::Status& why) {
  if (interrupted_.load()) return Fail(why);  // all go
  std::vector<int> lost = seat_.lost_ranks();
  if (lost.empty()) return Fail(why);
  lost = Union(lost, seat_.gone_ranks());
  const bool fenced = std::binary_search(lost.begin(), lost.end(), rank());
  const std::vector<bool> present = Present();
  const auto before = std::count(present.begin(), present.end(), true);
  const auto missed = std::count_if(lost.begin(), lost.end(),
                                    [&](int r) { return present[static_cast<size_t>(r)]; });
  // Who misses most of the others is more likely the one that they miss.
  if (fenced || 2 * missed > before) {
    return Fail(absl::UnavailableError(
        absl::StrCat("the group goes on without rank ", rank(), ": ", why.message())));
  }
  log_.Warning("the group has lost ranks",
               {{"lost", absl::StrJoin(lost, ",")}, {"cause", why.ToString()}});
  return absl::OkStatus();
}

// As the leader has told all ranks.
absl::Status ExpertGroup::Admit() {
  const std::vector<int> guests = std::exchange(form_anew_, std::nullopt)->returned;
  const uint64_t generation = seat_.generation();
  absl::Status formed = Form(guests, options_.reform_timeout * kMostPatience);
  if (!formed.ok()) {
    const bool broke_again = seat_.generation() != generation;
    return failed_.ok() && broke_again ? Recover() : Fail(formed);
  }
  for (const int guest : guests) {
    if (seat_.is_present(guest)) continue;
    log_.Warning("a rank that came back went again", {{"returned", guest}});
    next_knock_ = clock_.Now() + kKnockAgain;
  }
  return formed;
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
// taken anew then), or the group has broken again.
absl::Status ExpertGroup::Form(const std::vector<int>& guests, Duration timeout) {
  for (std::vector<std::byte>& of_rank : mail_) of_rank.clear();  // from before
  form_anew_.reset();
  transport::GroupOptions options = options_.group;
  options.timeout = timeout;
  std::unique_ptr<transport::Collectives> group;
  if (!formed()) {
    seat_.Leave();
    BATON_ASSIGN_OR_RETURN(group, rendezvous_.Join(options));
  } else {
    const transport::RegroupOptions regroup{guests, options_.reform_timeout / 2};
    BATON_ASSIGN_OR_RETURN(group, rendezvous_.Regroup(options, regroup, seat_));
    const std::vector<int> gone = seat_.gone_ranks();
    if (std::binary_search(gone.begin(), gone.end(), rank())) {
      return Fail(absl::UnavailableError(absl::StrCat("the group goes on without rank ", rank())));
    }
    for (const int r : gone) history_.ended[static_cast<size_t>(r)] = true;
  }
  seat_.Take(std::move(group));
  absent_.clear();
  for (int32_t r = 0; r < ranks(); ++r) {
    if (!seat_.is_present(r)) absent_.push_back(r);
  }
  BATON_RETURN_IF_ERROR(Agree());
  log_.Info("the group stands", {{"generation", seat_.generation()},
                                 {"absent", absl::StrJoin(absent_, ",")},
                                 {"leader", leader_},
                                 {"placement", slots_->active().version}});
  return absl::OkStatus();
}

// All ranks say where they stand and draw the same conclusions.
absl::Status ExpertGroup::Agree() {
  if (history_.entered.size() > kMaxEntered) {
    return Fail(absl::UnavailableError("the group breaks whenever it forms"));
  }
  Standing mine;
  mine.step = step_;
  mine.history = history_;
  if (formed()) {
    mine.state = slots_->state();
    mine.has_slots = true;
  }
  const size_t bytes = StandingBytes(ranks());
  std::vector<std::byte> all(bytes * static_cast<size_t>(ranks()));
  BATON_RETURN_IF_ERROR(seat_.AllGather(EncodeStanding(mine, ranks()), all, options_.timeout));
  std::vector<Standing> standings(static_cast<size_t>(ranks()));
  for (size_t r = 0; r < standings.size(); ++r) {
    if (!seat_.is_present(static_cast<int>(r))) continue;
    absl::StatusOr<Standing> standing =
        DecodeStanding(std::span(all).subspan(r * bytes, bytes), ranks());
    if (!standing.ok()) return Fail(standing.status());
    standings[r] = *std::move(standing);
  }
  BATON_RETURN_IF_ERROR(Establish(standings));
  bool any = false;
  for (const Standing& standing : standings) {
    step_ = std::max(step_, standing.step);
    any = any || standing.has_slots;
  }
  ++step_;
  uncounted_steps_ = 0;
  events_.clear();
  copier_.Drop();
  const absl::Status begun = any ? GoOn(standings) : BeginAnew();
  return begun.ok() || !seat_.health().ok() ? begun : Fail(begun);
}

// Whether these ranks are the group, or others may be (scheduler/group_quorum.h).
absl::Status ExpertGroup::Establish(const std::vector<Standing>& standings) {
  std::vector<const scheduler::ViewHistory*> histories;
  std::vector<bool> stayed;
  for (const Standing& standing : standings) {
    stayed.push_back(standing.has_slots);
    histories.push_back(standing.has_slots ? &standing.history : nullptr);
  }
  const std::vector<bool> present = Present();
  const int32_t first_stayed = LowestOf(stayed);
  const bool any = first_stayed < ranks();
  const scheduler::GroupView view{seat_.generation(), any ? first_stayed : LowestOf(present),
                                  present};
  if (any) {
    const scheduler::QuorumDecision decision = scheduler::DecideQuorum(histories);
    const std::vector<int32_t>& outdated = decision.outdated;
    if (std::binary_search(outdated.begin(), outdated.end(), rank())) {
      return Fail(absl::UnavailableError(
          absl::StrCat("the group has gone on without rank ", rank(), " before")));
    }
    if (outdated.empty() && !decision.may_go_on) {
      return Fail(absl::UnavailableError(decision.why_not));
    }
    // Where some are outdated, they leave now: the barrier fails, and the others form once more.
    if (formed() && outdated.empty()) history_.Enter(view);
  }
  BATON_RETURN_IF_ERROR(seat_.Barrier(options_.timeout));
  for (size_t r = 0; formed() && r < present.size(); ++r) {
    report_.lost += history_.established.members[r] && !present[r];
  }
  history_.Establish(view);
  return absl::OkStatus();
}

// A new group: experts lie as for even loads.
absl::Status ExpertGroup::BeginAnew() {
  BATON_CHECK(absent_.empty());
  BATON_ASSIGN_OR_RETURN(scheduler::ExpertPlacement placed,
                         scheduler::StartingPlacement(topology_, options_.rebalance.policy,
                                                      options_.rebalance.survive_rank_loss));
  ActiveExperts active{
      .version = 1,
      .placement = std::make_shared<const scheduler::ExpertPlacement>(std::move(placed)),
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
    stayed.push_back(standing.has_slots);
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
  // First, as the planner may begin a round: its copies take the room of those that were made
  // before and are not in use.
  BATON_RETURN_IF_ERROR(host_.Install(active));
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
  placed_at_ = clock_.Now();
  Publish();
  return absl::OkStatus();
}

}  // namespace baton::decode_worker
