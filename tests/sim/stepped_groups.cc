#include "tests/sim/stepped_groups.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "model/runner_decorator.h"

namespace baton::sim {
namespace {

constexpr Duration kHeaders = Duration::Micros(20);
constexpr Duration kStepCost = Duration::Micros(400);
constexpr Duration kRowCost = Duration::Micros(20);          // of the rank with the most rows
constexpr Duration kExpertTokenCost = Duration::Nanos(500);  // of the rank with the most tokens
constexpr Duration kNotice = Duration::Millis(20);           // a dead rank, at most
constexpr Duration kBeat = Duration::Millis(5);
constexpr int kMaxBeats = 20'000;  // 100 s

}  // namespace

struct SteppedGroups::Group {
  Group(int f, int n, const ExpertGroupOptions& options, EventQueue& queue,
        std::function<void(const std::string&)> problem)
      : first(f),
        up(static_cast<size_t>(n)),
        rows_of(static_cast<size_t>(n)),
        experts(options, queue, std::move(problem)) {}

  const int first;
  std::vector<bool> up;
  std::vector<int> joining;     // while the others reform
  bool reforming = false;       // a rank is gone, and the others do not know yet
  bool holding = false;         // ranks wait for the group to form
  bool open = false;            // a step has begun
  std::vector<ExpertRow> rows;  // of the step
  std::vector<int32_t> rows_of;
  Tick last_step;
  ExpertGroup experts;
};

// A rank's runner: up while it lives.
class SteppedGroups::Member final : public model::RunnerDecorator {
 public:
  Member(SteppedGroups& groups, int rank, std::unique_ptr<StubRunner> runner)
      : RunnerDecorator(*runner), groups_(groups), rank_(rank), runner_(std::move(runner)) {
    groups_.OnUp(rank_);
  }
  ~Member() override { groups_.OnDown(rank_); }

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    const absl::Status joined = groups_.OnPass(rank_, plan);
    return joined.ok() ? RunnerDecorator::Run(plan, observer, output) : joined;
  }

 private:
  SteppedGroups& groups_;
  const int rank_;
  const std::unique_ptr<StubRunner> runner_;
};

SteppedGroups::SteppedGroups(const GroupOptions& options, int decode_ranks, uint64_t seed,
                             EventQueue& queue, std::function<void(const std::string&)> problem)
    : options_(options), queue_(queue), problem_(std::move(problem)), rng_(seed) {
  BATON_CHECK_EQ(decode_ranks % options.ranks, 0);
  for (int first = 0; first < decode_ranks; first += options.ranks) {
    ExpertGroupOptions experts = options.experts;
    experts.ranks = options.ranks;
    experts.seed = rng_.Next();
    groups_.push_back(std::make_unique<Group>(
        first, options.ranks, experts, queue, [this, first](const std::string& what) {
          problem_(absl::StrCat("group of decode-", first, ": ", what));
        }));
  }
}

SteppedGroups::~SteppedGroups() = default;

std::unique_ptr<model::Runner> SteppedGroups::MakeRunner(int rank,
                                                         const StubRunnerOptions& options) {
  return std::make_unique<Member>(*this, rank, std::make_unique<StubRunner>(options, nullptr));
}

void SteppedGroups::Attach(Cluster& cluster) {
  cluster_ = &cluster;
  queue_.After(kBeat, [this] { Beat(0); });
}

ExpertTotals SteppedGroups::totals() const {
  ExpertTotals sum;
  for (const auto& group : groups_) sum.Add(group->experts.totals());
  return sum;
}

// --- ranks that come and go -----------------------------------------------------------------

void SteppedGroups::OnUp(int rank) {
  Group& group = GroupOf(rank);
  const int local = rank - group.first;
  group.up[static_cast<size_t>(local)] = true;
  if (!group.experts.formed()) {
    if (std::find(group.up.begin(), group.up.end(), false) == group.up.end()) {
      group.experts.Form();
    } else if (!std::exchange(group.holding, true)) {
      queue_.After(Duration(), [this, &group] { HoldWhileUnformed(group); });
    }
  } else if (group.reforming) {
    group.joining.push_back(local);
  } else {
    group.experts.Join(local);
    if (!group.experts.formed()) FailWhole(group);
  }
}

// A rank without its group takes no part in anything: no router sees it.
void SteppedGroups::HoldWhileUnformed(Group& group) {
  group.holding = !group.experts.formed();
  if (!group.holding) return;
  Hold(group, Duration::Millis(2));
  queue_.After(Duration::Millis(1), [this, &group] { HoldWhileUnformed(group); });
}

void SteppedGroups::OnDown(int rank) {
  Group& group = GroupOf(rank);
  const int local = rank - group.first;
  group.up[static_cast<size_t>(local)] = false;
  std::erase(group.joining, local);
  if (!group.experts.formed()) return;
  group.experts.Lose(local);
  if (std::exchange(group.reforming, true)) return;
  const auto noticed =
      Duration::Nanos(static_cast<int64_t>(rng_.Below(static_cast<uint64_t>(kNotice.nanos()))));
  queue_.After(Duration(), [this, &group, noticed] { Hold(group, noticed); });
  queue_.After(noticed, [this, &group] { Reform(group); });
}

void SteppedGroups::Reform(Group& group) {
  group.reforming = false;
  group.experts.Reform();
  if (!group.experts.formed()) return FailWhole(group);
  for (const int local : std::exchange(group.joining, {})) {
    group.experts.Join(local);
    if (!group.experts.formed()) return FailWhole(group);
  }
  if (group.open) Close(group);  // what had begun is done again
}

// Experts are uncovered: every rank starts anew, and its requests go elsewhere.
void SteppedGroups::FailWhole(Group& group) {
  group.open = group.reforming = false;
  group.rows.clear();
  group.joining.clear();
  std::fill(group.rows_of.begin(), group.rows_of.end(), 0);
  const Duration down = Duration::Millis(static_cast<int64_t>(20 + rng_.Below(100)));
  queue_.After(Duration(), [this, &group, down] {
    for (size_t i = 0; i < group.up.size(); ++i) {
      if (group.up[i]) cluster_->CrashDecode(group.first + static_cast<int>(i), down);
    }
  });
}

void SteppedGroups::Stall(int rank, Duration for_how_long) {
  Group& group = GroupOf(rank);
  if (for_how_long > kNotice) return cluster_->CrashDecode(rank, for_how_long);
  Hold(group, for_how_long);
}

// --- steps ----------------------------------------------------------------------------------

void SteppedGroups::Hold(Group& group, Duration for_how_long) {
  for (size_t i = 0; i < group.up.size(); ++i) {
    if (group.up[i]) cluster_->StallDecode(group.first + static_cast<int>(i), for_how_long);
  }
}

absl::Status SteppedGroups::OnPass(int rank, const scheduler::BatchPlan& plan) {
  Group& group = GroupOf(rank);
  if (!group.experts.formed()) return absl::UnavailableError("the group is not formed");
  for (const scheduler::SequenceSlice& slice : plan.slices) {
    for (int32_t i = 0; i < slice.row_count; ++i) {
      group.rows.push_back({slice.key.request, slice.first_position + i});
    }
  }
  group.rows_of[static_cast<size_t>(rank - group.first)] += plan.total_rows;
  if (!std::exchange(group.open, true)) {
    queue_.After(kHeaders, [this, &group] { Close(group); });
  }
  cluster_->StallDecode(rank, kHeaders);
  return absl::OkStatus();
}

// Everybody's header is there: the step takes place.
void SteppedGroups::Close(Group& group) {
  if (!group.open || group.reforming) return;
  const int64_t tokens = group.experts.Step(group.rows);
  if (!group.experts.formed()) return FailWhole(group);
  const int32_t most = *std::max_element(group.rows_of.begin(), group.rows_of.end());
  Hold(group, kStepCost + kRowCost * most + kExpertTokenCost * tokens);
  group.open = false;
  group.last_step = queue_.now();
  group.rows.clear();
  std::fill(group.rows_of.begin(), group.rows_of.end(), 0);
}

// An idle group runs empty steps where somebody waits for them.
void SteppedGroups::Beat(int beats) {
  bool whole = true;
  for (const auto& group : groups_) {
    whole = whole && group->experts.whole();
    const bool idle = !group->open && !group->reforming && queue_.now() - group->last_step >= kBeat;
    if (!idle || !group->experts.WantsSteps()) continue;
    group->open = true;
    Close(*group);
  }
  if (finished_ && whole) return;
  if (beats >= kMaxBeats) return problem_("a group does not become whole again");
  queue_.After(kBeat, [this, next = finished_ ? beats + 1 : 0] { Beat(next); });
}

}  // namespace baton::sim
