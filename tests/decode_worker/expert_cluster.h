#ifndef BATON_TESTS_DECODE_WORKER_EXPERT_CLUSTER_H_
#define BATON_TESTS_DECODE_WORKER_EXPERT_CLUSTER_H_

// An expert-parallel group of ranks, each with a model, a thread and requests of its own, which it
// runs again and again while the experts move or ranks come and go. Whatever happens, each run of a
// request has to give the tokens, log-probabilities and latents that one rank gives alone.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/thread.h"
#include "decode_worker/expert_group.h"
#include "model/model_runner.h"
#include "model/runner_decorator.h"
#include "tests/transport/group_fabrics.h"

namespace baton::decode_worker {

// What a request yields, as bits.
struct ChatResult {
  std::vector<scheduler::SampledToken> tokens;
  std::vector<std::vector<std::byte>> latents;  // of each layer
};

// One request: a prompt, run in prefill form, and then decode rows one by one.
struct Chat {
  std::vector<TokenId> prompt;
  int32_t output = 0;
  std::vector<PageId> pages;
};

// A runner whose copies of experts wait while the test holds them, or fail, or whose passes fail.
class SpoiltRunner final : public model::RunnerDecorator, public model::ExpertHost {
 public:
  // `observed`: passes have an observer. Those of groups on GPUs take none.
  SpoiltRunner(model::Runner& runner, bool observed)
      : RunnerDecorator(runner), host_(*runner.experts()), observed_(observed) {}
  ~SpoiltRunner() override = default;

  void Hold() { Set(true, absl::OkStatus()); }
  void Release() { Set(false, absl::OkStatus()); }
  void FailCopies(absl::Status status) { Set(false, std::move(status)); }
  void FailPasses() { passes_fail_.store(true); }
  // The rank leaves its group in the middle of its next pass with rows, before it where passes are
  // not observed.
  void LeaveInPass(transport::GroupSeat& seat) { leaves_.store(&seat); }
  // The next pass with rows waits until this is taken back.
  void HoldPasses(bool held);
  int waiting() const { return waiting_.load(); }  // copies that are held at present
  int copies() const { return copies_.load(); }    // begun so far

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override;
  ExpertHost* experts() override { return this; }
  scheduler::ExpertTopology topology() const override { return host_.topology(); }
  absl::Status Install(const scheduler::ActiveExperts& active) override {
    return host_.Install(active);
  }
  std::string pass_settings() const override { return host_.pass_settings(); }
  void BeginCopies() override { host_.BeginCopies(); }
  void BeginStep(int32_t most_rows) override { host_.BeginStep(most_rows); }
  void TakeChoices(std::span<int32_t> counts) override { host_.TakeChoices(counts); }
  int64_t ExpertBytes(int32_t layer, int32_t expert) const override {
    return host_.ExpertBytes(layer, expert);
  }
  absl::Status Copy(const scheduler::ExpertCopy& copy,
                    absl::FunctionRef<bool(int64_t bytes)> may_go_on) override;

 private:
  void Set(bool held, absl::Status status);

  ExpertHost& host_;
  const bool observed_;
  std::atomic<int> waiting_{0};
  std::atomic<int> copies_{0};
  std::atomic<bool> passes_fail_{false};
  std::atomic<transport::GroupSeat*> leaves_{nullptr};
  bool passes_held_ = false;  // guarded by mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;    // guarded by mutex_
  absl::Status status_;  // guarded by mutex_
};

// A rendezvous at which this rank dies, falls silent, or comes and is gone again.
class SpoiltRendezvous final : public transport::Rendezvous {
 public:
  explicit SpoiltRendezvous(std::unique_ptr<transport::Rendezvous> inner)
      : inner_(std::move(inner)) {}
  ~SpoiltRendezvous() override = default;

  // Where its group would form anew next, it dies instead.
  void DieInRegroup() { dies_.store(true); }
  // Where its group would form anew, it waits until this is taken back.
  void HoldRegroups(bool held);
  // As soon as a group has taken it in, it has gone.
  void VanishOnce() { vanishes_.store(true); }

  absl::StatusOr<std::unique_ptr<transport::Collectives>> Join(
      const transport::GroupOptions& options) override;
  absl::StatusOr<std::unique_ptr<transport::Collectives>> Regroup(
      const transport::GroupOptions& options, const transport::RegroupOptions& regroup,
      const transport::Collectives& before) override;
  std::vector<int> Knocking() override { return inner_->Knocking(); }

 private:
  const std::unique_ptr<transport::Rendezvous> inner_;
  std::atomic<bool> dies_{false};
  std::atomic<bool> vanishes_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;  // guarded by mutex_
};

class ExpertCluster {
 public:
  struct Options {
    std::string model = "bf16-groups-mtp";
    int32_t ranks = 2;
    int32_t chats = 2;       // of each rank
    int32_t idle_ranks = 0;  // the last ones: without requests
    int32_t redundant_experts = 0;
    int32_t overlap_rows = 0;
    // Weights are copied, the experts to places that a rank has for its slots and copies alone.
    bool uploads = false;
    // Puts a rank's runner on a device of its own; rank -1 is the one that computes alone what all
    // are compared with. Null: on the CPU.
    std::function<void(int32_t rank, model::RunnerOptions& options)> device;
    ExpertGroupOptions group;
  };
  // Every expert on several ranks, as far as the slots go, and experts that move for that alone.
  static Options Covered(int32_t ranks, int32_t redundant_experts);

  // Starts all ranks.
  explicit ExpertCluster(const Options& options,
                         std::unique_ptr<transport::GroupFabric> fabric =
                             std::make_unique<transport::InprocGroupFabric>());
  ~ExpertCluster() { Stop(); }

  // Waits until `done` is true: all tests' conditions come true. Fails the test after minutes.
  void Await(const std::string& what, const std::function<bool()>& done);
  // Ends all ranks; again: no effect.
  void Stop();

  // Ranks die as processes do, or are started again with nothing.
  void Kill(int32_t r);
  void KillInPass(const std::vector<int32_t>& ranks);  // all in the same one
  void Restart(int32_t r);

  SpoiltRunner& runner(int32_t r) { return *member(r).spoilt; }
  SpoiltRendezvous& rendezvous(int32_t r) { return *member(r).rendezvous; }
  ExpertGroup& group(int32_t r) { return *member(r).group; }
  // Null before the group was formed.
  std::shared_ptr<const ExpertsView> view(int32_t r) { return member(r).group->View(); }
  // Summed over the rank's life so far, and whether it has left its group.
  ExpertsReport report(int32_t r);
  absl::Status health(int32_t r);
  int64_t runs(int32_t r) { return member(r).runs.load(); }      // of whole requests
  int64_t passes(int32_t r) { return member(r).passes.load(); }  // with rows of its own
  // So many more passes on each rank that has requests.
  void AwaitPasses(int64_t count);

 private:
  struct Member {
    std::unique_ptr<transport::GroupSeat> seat;
    std::unique_ptr<SpoiltRendezvous> rendezvous;
    std::unique_ptr<model::Runner> runner;
    std::unique_ptr<SpoiltRunner> spoilt;
    std::unique_ptr<ExpertGroup> group;
    std::vector<Chat> chats;
    std::atomic<bool> killed{false};
    std::atomic<int64_t> runs{0};
    std::atomic<int64_t> passes{0};
    std::mutex mutex;
    std::condition_variable wake;
    bool woken = false;    // guarded by mutex
    ExpertsReport report;  // guarded by mutex
    absl::Status health;   // guarded by mutex
    std::unique_ptr<Thread> thread;
  };

  Member& member(int32_t r) { return *members_[static_cast<size_t>(r)]; }
  void Start(int32_t r);
  void Serve(int32_t r);
  bool RunChats(int32_t r);
  bool Pass(int32_t r, const scheduler::BatchPlan& plan, scheduler::StepOutput* output);
  void Record(int32_t r);
  const ChatResult& Alone(const Chat& chat);

  const Options options_;
  const std::shared_ptr<const model::LoadedModel> model_;
  MonotonicClock clock_;
  std::unique_ptr<transport::GroupFabric> fabric_;
  std::unique_ptr<model::Runner> solo_;
  std::map<std::vector<TokenId>, ChatResult> alone_;
  std::atomic<bool> stop_{false};
  std::atomic<int> stopped_{0};  // ranks that run no more requests
  std::atomic<bool> end_{false};
  std::vector<std::unique_ptr<Member>> members_;
};

}  // namespace baton::decode_worker

#endif  // BATON_TESTS_DECODE_WORKER_EXPERT_CLUSTER_H_
