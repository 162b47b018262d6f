#ifndef BATON_TESTS_SERVER_STUB_CLUSTER_H_
#define BATON_TESTS_SERVER_STUB_CLUSTER_H_

// A whole server in the test's process, with the simulation's hash for a model: fast, exact, and
// its tokens can be predicted (sim::OracleTokens).

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "model/runner_decorator.h"
#include "model/tokenizer.h"
#include "proto/baton/v1/completion.grpc.pb.h"
#include "server/embedded.h"
#include "tests/sim/stub_runner.h"

namespace baton::server {

// 257 ids: 0 is <eos> (special), then one for each byte: a to z, space, full stop, e acute's two
// bytes, the others ascending.
std::shared_ptr<const model::Tokenizer> ByteTokenizer();

// Holds every pass while closed.
class Gate {
 public:
  void Close() { Set(false); }
  void Open() { Set(true); }
  // The next `count` passes, one that waits included, go through a closed gate.
  void LetThrough(int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    admitted_ += count;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_ || admitted_ > 0; });
    if (!open_) --admitted_;
  }
  // Returns when `count` passes in all have come to the gate.
  void WaitForPasses(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= count; });
  }

 private:
  void Set(bool open) {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;  // guarded by mutex_
  int arrived_ = 0;   // guarded by mutex_
  int admitted_ = 0;  // guarded by mutex_
};

class GatedRunner final : public model::RunnerDecorator {
 public:
  GatedRunner(std::unique_ptr<model::Runner> runner, Gate& gate)
      : RunnerDecorator(*runner), runner_(std::move(runner)), gate_(gate) {}
  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    gate_.Pass();
    return RunnerDecorator::Run(plan, observer, output);
  }

 private:
  const std::unique_ptr<model::Runner> runner_;
  Gate& gate_;
};

ModelDescription StubModel();

// Two stub runners behind gates, inproc transport, no ports.
EmbeddedParts StubParts(Gate& prefill, Gate& decode, int32_t pages = 64);

inline constexpr char kDecodePages[] = "baton_kv_pages_used{role=\"decode\"}";
inline constexpr char kPrefillPages[] = "baton_kv_pages_used{role=\"prefill\"}";

class StubCluster {
 public:
  StubCluster() : StubCluster(StubParts(prefill_gate, decode_gate)) {}
  // `parts` may use this object's gates only if they come from another StubCluster's caller.
  explicit StubCluster(EmbeddedParts parts);
  ~StubCluster();

  // The value of a series such as `baton_kv_pages_used{role="decode"}`; 0 when it is not there.
  double Metric(const std::string& series) const;
  // Waits until it has that value; false after 10 seconds.
  bool WaitForMetric(const std::string& series, double value) const;
  // Waits until `done`; false after 10 seconds.
  static bool WaitFor(const std::function<bool()>& done);

  v1::Completion::Stub& stub() { return *stub_; }

  Gate prefill_gate;
  Gate decode_gate;
  MonotonicClock clock;
  Metrics metrics;
  std::unique_ptr<Embedded> embedded;

 private:
  std::unique_ptr<v1::Completion::Stub> stub_;
};

v1::GenerateRequest IdRequest(const std::vector<TokenId>& prompt, int32_t max_tokens,
                              uint64_t seed);

std::vector<TokenId> Prompt(int32_t length, uint64_t seed = 5);

// A request that ends by length, so that its number of tokens is known.
v1::GenerateRequest Endless(int32_t prompt_tokens, int32_t max_tokens, uint64_t seed = 3);

// What the hash model answers to it.
sim::OracleOutput Expected(const v1::GenerateRequest& request);

struct Streamed {
  grpc::Status status;
  std::vector<v1::Chunk> chunks;
  std::string text;
  std::vector<TokenId> ids;
  v1::Finished finished;
  bool has_finished = false;
  std::string request_id;
  std::string retry_after;  // trailing metadata
};
Streamed Generate(v1::Completion::Stub& stub, const v1::GenerateRequest& request);

}  // namespace baton::server

#endif  // BATON_TESTS_SERVER_STUB_CLUSTER_H_
