#include "tests/decode_worker/expert_cluster.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "gtest/gtest.h"
#include "model/expert_tables.h"
#include "tests/model/model_harness.h"

namespace baton::decode_worker {
namespace {

using scheduler::Form;
using scheduler::SampledToken;

constexpr int32_t kPrompt = 9;
constexpr int32_t kOutput = 12;
constexpr int32_t kPageTokens = 16;
// Far more than anything here takes: a bound that is met means that something hangs.
constexpr auto kLimit = std::chrono::seconds(240);

scheduler::SamplingParams Sampling() {
  scheduler::SamplingParams sampling;
  sampling.temperature = 0;
  sampling.top_logprobs = 3;
  return sampling;
}

model::RunnerOptions RunnerOptions(transport::Collectives* collectives, Duration timeout) {
  model::RunnerOptions options;
  options.device.threads = 1;
  options.page_tokens = kPageTokens;
  options.total_pages = 32;
  options.max_batch_rows = 64;
  options.group = {.collectives = collectives,
                   .split = model::Split::kExpert,
                   .timeout = timeout,
                   .stepped = true};
  return options;
}

// The least room that a round of copies may need.
int32_t SpareExperts(const ExpertCluster::Options& options, const model::LoadedModel& model) {
  const int32_t slots = scheduler::SlotsPerRank(model.config.routed_experts,
                                                options.redundant_experts, options.ranks);
  return std::max(options.group.rebalance.max_staged, slots);
}

std::shared_ptr<const scheduler::ExpertPlacement> StartOf(const ExpertCluster::Options& options,
                                                          const model::LoadedModel& model) {
  const int32_t slots = scheduler::SlotsPerRank(model.config.routed_experts,
                                                options.redundant_experts, options.ranks);
  return std::make_shared<const scheduler::ExpertPlacement>(
      scheduler::StartingPlacement(model::TopologyOf(model.config, options.ranks, slots),
                                   options.group.rebalance.policy,
                                   options.group.rebalance.survive_rank_loss)
          .value());
}

// What a chat has come to.
struct Progress {
  const Chat* chat = nullptr;
  std::vector<TokenId> tokens;
  int32_t computed = 0;
  ChatResult result;
  bool done() const { return result.tokens.size() == static_cast<size_t>(chat->output); }
};

scheduler::SequenceSlice SliceOf(const Progress& progress, uint64_t number,
                                 const scheduler::SamplingParams& sampling) {
  scheduler::SequenceSlice slice;
  slice.key = {RequestId(number), 0};
  slice.sequence = progress.tokens;
  slice.prompt_tokens = static_cast<int32_t>(progress.chat->prompt.size());
  slice.first_position = progress.computed;
  slice.row_count = static_cast<int32_t>(progress.tokens.size()) - progress.computed;
  slice.pages = progress.chat->pages;
  slice.sample = true;
  slice.sampling = &sampling;
  return slice;
}

// The next pass of all chats; all are at the same point.
scheduler::BatchPlan PlanOf(const std::vector<Progress>& chats,
                            const scheduler::SamplingParams& sampling) {
  scheduler::BatchPlan plan;
  plan.form = chats.front().computed == 0 ? Form::kPrefill : Form::kDecode;
  for (size_t i = 0; i < chats.size(); ++i) {
    plan.slices.push_back(SliceOf(chats[i], i, sampling));
    plan.total_rows += plan.slices.back().row_count;
  }
  return plan;
}

void Take(const scheduler::StepOutput& output, std::vector<Progress>& chats) {
  BATON_CHECK_EQ(output.tokens.size(), chats.size());
  for (size_t i = 0; i < chats.size(); ++i) {
    chats[i].computed = static_cast<int32_t>(chats[i].tokens.size());
    chats[i].tokens.push_back(output.tokens[i].token);
    chats[i].result.tokens.push_back(output.tokens[i]);
  }
}

void ReadLatents(model::Runner& runner, Progress& progress) {
  for (int32_t layer = 0; layer < runner.info().layers; ++layer) {
    std::vector<std::byte> bytes(static_cast<size_t>(progress.computed) *
                                 static_cast<size_t>(runner.info().entry_bytes));
    const size_t pages = static_cast<size_t>((progress.computed + kPageTokens - 1) / kPageTokens);
    runner.PackPages(layer, std::span(progress.chat->pages).first(pages), progress.computed, bytes);
    progress.result.latents.push_back(std::move(bytes));
  }
}

void ExpectSameBits(const ChatResult& result, const ChatResult& alone) {
  ASSERT_EQ(result.tokens.size(), alone.tokens.size());
  for (size_t i = 0; i < alone.tokens.size(); ++i) {
    const SampledToken& a = result.tokens[i];
    const SampledToken& b = alone.tokens[i];
    ASSERT_EQ(a.token, b.token) << "token " << i;
    ASSERT_EQ(std::memcmp(&a.logprob, &b.logprob, sizeof(float)), 0) << "token " << i;
    ASSERT_EQ(a.top_logprobs, b.top_logprobs) << "token " << i;
  }
  ASSERT_EQ(result.latents, alone.latents);
}

// Part of the pass is done by then: others have had rows of this rank.
class LeavesInLayer final : public model::LayerObserver {
 public:
  LeavesInLayer(int32_t layer, std::atomic<transport::GroupSeat*>& seat)
      : layer_(layer), seat_(seat) {}
  void OnLayerWritten(int32_t layer) override {
    if (layer != layer_) return;
    if (transport::GroupSeat* const seat = seat_.exchange(nullptr)) seat->Leave();
  }

 private:
  const int32_t layer_;
  std::atomic<transport::GroupSeat*>& seat_;
};

}  // namespace

absl::Status SpoiltRunner::Copy(const scheduler::ExpertCopy& copy,
                                absl::FunctionRef<bool(int64_t bytes)> may_go_on) {
  ++copies_;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    changed_.wait(lock, [this] { return !held_; });
    --waiting_;
    if (!status_.ok()) return status_;
  }
  return host_.Copy(copy, may_go_on);
}

void SpoiltRunner::Set(bool held, absl::Status status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
    status_ = std::move(status);
  }
  changed_.notify_all();
}

absl::Status SpoiltRunner::Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                               scheduler::StepOutput* output) {
  if (passes_fail_.load()) return absl::InternalError("a machine at fault");
  if (plan.total_rows > 0) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !passes_held_; });
  }
  if (!observed_) {
    transport::GroupSeat* const seat = plan.total_rows > 0 ? leaves_.exchange(nullptr) : nullptr;
    if (seat != nullptr) seat->Leave();
    return RunnerDecorator::Run(plan, nullptr, output);
  }
  LeavesInLayer leaves(info().layers - 1, leaves_);
  return RunnerDecorator::Run(plan, plan.total_rows > 0 ? &leaves : observer, output);
}

void SpoiltRunner::HoldPasses(bool held) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    passes_held_ = held;
  }
  changed_.notify_all();
}

void SpoiltRendezvous::HoldRegroups(bool held) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
  }
  changed_.notify_all();
}

absl::StatusOr<std::unique_ptr<transport::Collectives>> SpoiltRendezvous::Join(
    const transport::GroupOptions& options) {
  auto group = inner_->Join(options);
  if (group.ok() && vanishes_.exchange(false)) return absl::UnavailableError("it has gone");
  return group;
}

absl::StatusOr<std::unique_ptr<transport::Collectives>> SpoiltRendezvous::Regroup(
    const transport::GroupOptions& options, const transport::RegroupOptions& regroup,
    const transport::Collectives& before) {
  if (dies_.exchange(false)) return absl::UnavailableError("it has died");
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !held_; });
  }
  return inner_->Regroup(options, regroup, before);
}

ExpertCluster::Options ExpertCluster::Covered(int32_t ranks, int32_t redundant_experts) {
  Options options;
  options.ranks = ranks;
  options.redundant_experts = redundant_experts;
  options.uploads = true;
  options.group.timeout = Duration::Seconds(20);
  options.group.reform_timeout = Duration::Seconds(20);
  options.group.knock_interval = Duration::Millis(5);
  options.group.steps_per_count = 2;
  options.group.rebalance.survive_rank_loss = true;
  options.group.rebalance.automatic = false;
  return options;
}

ExpertCluster::ExpertCluster(const Options& options, std::unique_ptr<transport::GroupFabric> fabric)
    : options_(options), model_(model::LoadTestModel(options.model)), fabric_(std::move(fabric)) {
  model::RunnerOptions alone = RunnerOptions(nullptr, Duration());
  if (options.device) options.device(-1, alone);
  solo_ = model::CreateRunner(model_, alone).value();
  auto rendezvous = fabric_->NewRendezvous(options.ranks);
  for (int32_t r = 0; r < options.ranks; ++r) {
    members_.push_back(std::make_unique<Member>());
    Member& m = member(r);
    m.rendezvous =
        std::make_unique<SpoiltRendezvous>(std::move(rendezvous[static_cast<size_t>(r)]));
    if (r >= options.ranks - options.idle_ranks) continue;
    for (int32_t i = 0; i < options.chats; ++i) {
      Chat& chat = m.chats.emplace_back();
      chat.prompt = model::RandomTokens(kPrompt, model_->config.vocab_size,
                                        static_cast<uint64_t>(r * options.chats + i));
      chat.output = kOutput;
      chat.pages = model::TestPages(kPrompt + kOutput, kPageTokens, static_cast<uint32_t>(i * 4));
      Alone(chat);
    }
  }
  for (int32_t r = 0; r < options.ranks; ++r) Start(r);
}

void ExpertCluster::Start(int32_t r) {
  Member& m = member(r);
  m.killed.store(false);
  m.seat = std::make_unique<transport::GroupSeat>(options_.ranks, r);
  model::RunnerOptions runner_options = RunnerOptions(m.seat.get(), options_.group.timeout);
  runner_options.group.redundant_experts = options_.redundant_experts;
  runner_options.group.overlap_rows = options_.overlap_rows;
  runner_options.upload_weights = options_.uploads;
  runner_options.spare_experts = SpareExperts(options_, *model_);
  runner_options.group.placement = StartOf(options_, *model_);
  if (options_.device) options_.device(r, runner_options);
  m.runner = model::CreateRunner(model_, runner_options).value();
  m.spoilt = std::make_unique<SpoiltRunner>(*m.runner, /*observed=*/!options_.device);
  ExpertGroupOptions options = options_.group;
  options.group = transport::TestGroup(options_.ranks, r);
  m.group = ExpertGroup::Create(options, clock_, *m.spoilt, *m.seat, *m.rendezvous, Log()).value();
  m.group->SetWakeup([&m] {
    {
      std::lock_guard<std::mutex> lock(m.mutex);
      m.woken = true;
    }
    m.wake.notify_all();
  });
  m.thread = std::make_unique<Thread>("rank", [this, r] { Serve(r); });
}

// As a decode loop does.
void ExpertCluster::Serve(int32_t r) {
  Member& m = member(r);
  bool told = false;
  while (!m.killed.load() && !end_.load()) {
    if (!m.group->health().ok()) break;
    if (stop_.load() && !std::exchange(told, true)) ++stopped_;
    if (!stop_.load() && !m.chats.empty() && m.group->formed()) {
      RunChats(r);
    } else if (m.group->WantsPass()) {
      scheduler::StepOutput output;
      scheduler::BatchPlan none;
      none.form = Form::kDecode;
      Pass(r, none, &output);
    } else {
      std::unique_lock<std::mutex> lock(m.mutex);
      m.wake.wait_for(lock, std::chrono::milliseconds(20), [&m] { return m.woken; });
      m.woken = false;
    }
    Record(r);
  }
  Record(r);
  if (!told) ++stopped_;
  m.seat->Leave();
}

void ExpertCluster::Record(int32_t r) {
  Member& m = member(r);
  const ExpertsReport report = m.group->TakeReport().value_or(ExpertsReport());
  std::lock_guard<std::mutex> lock(m.mutex);
  m.report.switches += report.switches;
  m.report.copies += report.copies;
  m.report.restored += report.restored;
  m.report.lost += report.lost;
  for (size_t i = 0; i < report.ended.size(); ++i) m.report.ended[i] += report.ended[i];
  m.health = m.group->health();
}

bool ExpertCluster::Pass(int32_t r, const scheduler::BatchPlan& plan,
                         scheduler::StepOutput* output) {
  const absl::Status status = member(r).group->Run(plan, nullptr, output);
  // A pass that fails means that the rank has left its group, for good.
  EXPECT_EQ(status.ok(), member(r).group->health().ok()) << status;
  return status.ok();
}

bool ExpertCluster::RunChats(int32_t r) {
  Member& m = member(r);
  const scheduler::SamplingParams sampling = Sampling();
  std::vector<Progress> chats;
  for (const Chat& chat : m.chats) chats.push_back({&chat, chat.prompt, 0, {}});
  while (!chats.front().done()) {
    if (m.killed.load()) return false;
    scheduler::StepOutput output;
    if (!Pass(r, PlanOf(chats, sampling), &output)) return false;
    Take(output, chats);
    ++m.passes;
    Record(r);
  }
  for (size_t i = 0; i < chats.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "rank " << r << ", request " << i);
    ReadLatents(*m.runner, chats[i]);
    ExpectSameBits(chats[i].result, Alone(m.chats[i]));
  }
  ++m.runs;
  return true;
}

// Only looked up once all ranks run.
const ChatResult& ExpertCluster::Alone(const Chat& chat) {
  const auto known = alone_.find(chat.prompt);
  if (known != alone_.end()) return known->second;
  const scheduler::SamplingParams sampling = Sampling();
  std::vector<Progress> one = {{&chat, chat.prompt, 0, {}}};
  while (!one.front().done()) {
    scheduler::StepOutput output;
    const absl::Status status = solo_->Run(PlanOf(one, sampling), nullptr, &output);
    BATON_CHECK_MSG(status.ok(), status.ToString());
    Take(output, one);
  }
  ReadLatents(*solo_, one.front());
  return alone_.emplace(chat.prompt, one.front().result).first->second;
}

void ExpertCluster::Await(const std::string& what, const std::function<bool()>& done) {
  const auto end = std::chrono::steady_clock::now() + kLimit;
  while (!done()) {
    ASSERT_LT(std::chrono::steady_clock::now(), end) << "in vain: " << what;
    if (testing::Test::HasFatalFailure()) return;
    std::mutex mutex;
    std::unique_lock<std::mutex> lock(mutex);
    std::condition_variable().wait_for(lock, std::chrono::milliseconds(1));
  }
}

void ExpertCluster::AwaitPasses(int64_t count) {
  std::vector<int64_t> goals;
  for (int32_t r = 0; r < options_.ranks; ++r) goals.push_back(passes(r) + count);
  Await("more passes", [&] {
    for (int32_t r = 0; r < options_.ranks; ++r) {
      const bool serves = !member(r).chats.empty() && !member(r).killed.load() && health(r).ok();
      if (serves && passes(r) < goals[static_cast<size_t>(r)]) return false;
    }
    return true;
  });
}

void ExpertCluster::Stop() {
  stop_.store(true);
  for (const auto& m : members_) {
    m->spoilt->Release();
    m->spoilt->HoldPasses(false);
    m->rendezvous->HoldRegroups(false);
  }
  Await("the last passes", [this] { return stopped_.load() >= options_.ranks; });
  for (const auto& m : members_) m->group->Interrupt();
  end_.store(true);
  for (const auto& m : members_) m->thread.reset();
}

void ExpertCluster::KillInPass(const std::vector<int32_t>& ranks) {
  // All wait for the slowest in the pass that they begin meanwhile, and leave in it.
  for (const int32_t r : ranks) member(r).spoilt->HoldPasses(true);
  for (const int32_t r : ranks) member(r).spoilt->LeaveInPass(*member(r).seat);
  for (const int32_t r : ranks) member(r).spoilt->HoldPasses(false);
  for (const int32_t r : ranks) {
    Await("its end", [&] { return !health(r).ok(); });
    Kill(r);
  }
}

void ExpertCluster::Kill(int32_t r) {
  Member& m = member(r);
  m.killed.store(true);
  m.thread.reset();
}

void ExpertCluster::Restart(int32_t r) {
  Member& m = member(r);
  m.group.reset();
  m.spoilt.reset();
  m.health = absl::OkStatus();
  --stopped_;
  Start(r);
}

ExpertsReport ExpertCluster::report(int32_t r) {
  std::lock_guard<std::mutex> lock(member(r).mutex);
  return member(r).report;
}

absl::Status ExpertCluster::health(int32_t r) {
  std::lock_guard<std::mutex> lock(member(r).mutex);
  return member(r).health;
}

}  // namespace baton::decode_worker
