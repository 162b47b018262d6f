// What a step of the router costs as the cluster grows. Not a test:
// `ninja router_bench && tests/scheduler/router_bench`.

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "scheduler/router.h"

namespace baton::scheduler {
namespace {

constexpr uint32_t kFirstPrefill = 10'000;
constexpr int32_t kPages = 4096;

// A cluster of prefill workers and five times as many decode ranks (64 and 320 at most), `running`
// requests on each rank and `queued` ones behind them.
class BenchCluster {
 public:
  BenchCluster(int64_t prefill, int64_t running, int64_t queued)
      : ranks_(static_cast<uint32_t>(5 * prefill)), router_(Options()) {
    std::vector<RouterEvent> events;
    WorkerIdentity identity;
    identity.page_tokens = 64;
    PrefillStatus worker;
    worker.total_pages = worker.free_pages = kPages;
    worker.slots = 64;
    for (uint32_t i = 0; i < static_cast<uint32_t>(prefill); ++i) {
      events.push_back(
          PrefillJoined{WorkerId(kFirstPrefill + i), absl::StrCat("p", i), identity, worker});
    }
    for (uint32_t i = 0; i < ranks_; ++i) {
      status_.push_back({});
      status_[i].total_pages = status_[i].free_pages = kPages;
      status_[i].credits_granted = static_cast<uint64_t>(running);
      events.push_back(DecodeJoined{WorkerId(i), identity, status_[i]});
    }
    Step(events);
    for (int64_t i = 0; i < running * ranks_ + queued; ++i) {
      Step({Arrival()});
      for (const RouterAction& action : sink_.actions) {
        const auto* start = std::get_if<SendStart>(&action);
        if (start == nullptr) continue;
        ++status_[start->decode.value()].starts_received;
        keys_.emplace_back(start->decode, start->request.key);
        // Past prefill, so that its slot is free again.
        first_tokens_.push_back(Tokens(start->decode, start->request.key));
      }
      Step(first_tokens_);
      first_tokens_.clear();
    }
  }

  void Step(const std::vector<RouterEvent>& events) {
    now_ = now_ + Duration::Micros(50);
    sink_.Clear();
    router_.Step(now_, events, sink_);
  }

  Arrived Arrival() {
    Arrived arrived;
    arrived.id = RequestId(next_++);
    arrived.prompt.assign(200, 1);
    arrived.sampling.max_tokens = 200'000;
    arrived.arrived_at = now_;
    arrived.deadline = now_ + Duration::Seconds(3000);
    return arrived;
  }

  // A rank's message of one step: a token for each of the given requests.
  DecodeUpdated Tokens(WorkerId rank, RequestKey key) {
    DecodeUpdated event{rank, {}, now_};
    int32_t& count = delivered_[key];
    event.update.chunks.push_back(TokenChunk{key, count++, {{key, 7, 0, {}}}, count == 1, {}});
    event.update.status = status_[rank.value()];
    return event;
  }

  const std::vector<std::pair<WorkerId, RequestKey>>& keys() const { return keys_; }
  DecodeStatus& status(uint32_t rank) { return status_[rank]; }
  uint32_t ranks() const { return ranks_; }
  const RouterActionSink& sink() const { return sink_; }

 private:
  static RouterOptions Options() {
    RouterOptions options;
    options.max_queued = 100'000;
    return options;
  }

  const uint32_t ranks_;
  Router router_;
  RouterActionSink sink_;
  Tick now_ = Tick::FromNanos(1'000'000'000);
  uint64_t next_ = 1;
  std::vector<DecodeStatus> status_;
  std::vector<std::pair<WorkerId, RequestKey>> keys_;
  std::map<RequestKey, int32_t> delivered_;
  std::vector<RouterEvent> first_tokens_;
};

// One rank's token, nothing queued: what the loop does nearly always. Prefill workers.
void Token(benchmark::State& state) {
  BenchCluster cluster(state.range(0), 4, 0);
  size_t next = 0;
  for (auto _ : state) {
    const auto& [rank, key] = cluster.keys()[next++ % cluster.keys().size()];
    cluster.Step({cluster.Tokens(rank, key)});
  }
}

// The same while a full queue waits for credits that nobody has.
void TokenWhileFull(benchmark::State& state) {
  BenchCluster cluster(state.range(0), 4, 1000);
  size_t next = 0;
  for (auto _ : state) {
    const auto& [rank, key] = cluster.keys()[next++ % cluster.keys().size()];
    cluster.Step({cluster.Tokens(rank, key)});
  }
}

// A request that arrives, gets a place among all workers, and is cancelled.
void Place(benchmark::State& state) {
  BenchCluster cluster(state.range(0), 0, 0);
  for (uint32_t i = 0; i < cluster.ranks(); ++i) {
    cluster.status(i).credits_granted = uint64_t{1} << 40;
    DecodeUpdated granted{WorkerId(i), {}, Tick()};
    granted.update.status = cluster.status(i);
    cluster.Step({granted});
  }
  for (auto _ : state) {
    const Arrived arrived = cluster.Arrival();
    cluster.Step({arrived});
    const auto& start = std::get<SendStart>(cluster.sink().actions.at(0));
    DecodeUpdated ended{start.decode, {}, Tick()};
    DecodeStatus& status = cluster.status(start.decode.value());
    ++status.starts_received;
    RequestEnd end;
    end.key = start.request.key;
    end.reason = FinishReason::kLength;
    ended.update.ends.push_back(end);
    ended.update.released.push_back(end.key);
    ended.update.status = status;
    cluster.Step({ended});
  }
}

BENCHMARK(Token)->Arg(8)->Arg(64);
BENCHMARK(TokenWhileFull)->Arg(8)->Arg(64);
BENCHMARK(Place)->Arg(8)->Arg(64);

}  // namespace
}  // namespace baton::scheduler

BENCHMARK_MAIN();
