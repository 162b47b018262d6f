// A real (small, random) model behind the shipped router, planners and loops, in simulated time,
// with latents over the in-process transport and the seeded FaultyTransport between: under every
// seed each request ends in exactly the tokens of an undisturbed run or in a clean error, and all
// pages come back. A failure names its seed.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/generate.h"
#include "model/model_runner.h"
#include "model/runner_decorator.h"
#include "tests/model/model_harness.h"
#include "tests/sim/cluster.h"
#include "tests/sim/faulty_wires.h"

namespace baton::sim {
namespace {

constexpr int kSeeds = 200;
constexpr int kRequestsPerSeed = 6;
constexpr int kDistinctRequests = 16;
constexpr int32_t kModelPageTokens = 16;
constexpr int32_t kPages = 48;
constexpr int kMaxEvents = 200'000;  // of one seed; a run that feeds itself for ever needs more

std::shared_ptr<model::Runner> NewRunner(const std::shared_ptr<const model::LoadedModel>& loaded) {
  model::RunnerOptions options;
  options.device.threads = 1;
  options.page_tokens = kModelPageTokens;
  options.total_pages = kPages;
  options.max_batch_rows = 64;
  auto runner = model::CreateRunner(loaded, options);
  BATON_CHECK_MSG(runner.ok(), runner.status().ToString());
  return std::move(*runner);
}

// A runner that outlives its host, on the host's clock: building one for each seed takes longer
// than the seed. Its pages hold what the last host left there.
class BorrowedRunner final : public model::RunnerDecorator {
 public:
  BorrowedRunner(std::shared_ptr<model::Runner> runner, ManualClock* clock)
      : RunnerDecorator(*runner), runner_(std::move(runner)), clock_(clock) {}

  absl::Status Run(const scheduler::BatchPlan& plan, model::LayerObserver* observer,
                   scheduler::StepOutput* output) override {
    clock_->Advance(Duration::Micros(300) + Duration::Micros(20) * plan.total_rows);
    return RunnerDecorator::Run(plan, observer, output);
  }

 private:
  const std::shared_ptr<model::Runner> runner_;
  ManualClock* const clock_;
};

struct Work {
  std::vector<TokenId> prompt;
  scheduler::SamplingParams sampling;
  std::vector<TokenId> expected;
};

// Greedy and seeded sampling; prompts of one page to seven, ending inside pages and at their ends.
// Four families, within which every prompt begins as the shorter ones do.
std::vector<Work> MakeWork(model::Runner& runner) {
  std::vector<Work> work;
  ManualClock clock;
  for (int i = 0; i < kDistinctRequests; ++i) {
    Work w;
    const int32_t length = i < 3 ? 31 + i : 5 + 6 * i;
    w.prompt =
        model::RandomTokens(length, runner.info().vocab_size, 100 + static_cast<uint64_t>(i % 4));
    w.sampling.temperature = i % 2 == 0 ? 0.0f : 1.3f;
    w.sampling.top_p = i % 4 == 3 ? 0.9f : 1.0f;
    w.sampling.seed = 7 + static_cast<uint64_t>(i);
    w.sampling.max_tokens = 3 + i % 5;
    w.sampling.ignore_eos = true;
    model::GenerateOptions options;
    options.sampling = w.sampling;
    options.chunk_tokens = 64;
    const auto result = model::Generate(runner, clock, w.prompt, options, nullptr);
    BATON_CHECK_MSG(result.ok(), result.status().ToString());
    w.expected = result->tokens;
    work.push_back(std::move(w));
  }
  return work;
}

// A request of the seed that runs, as its client sees it.
struct Client {
  const Work* work = nullptr;
  std::vector<TokenId> tokens;
  int results = 0;
};

// What all seeds saw together.
struct Totals {
  std::map<absl::StatusCode, int> ended;
  transport::FaultCounts faults;
  ClusterCounts counts;
};

void TakeTokens(const scheduler::EmitTokens& emit, Client* client) {
  EXPECT_EQ(client->results, 0) << "tokens after the end of request " << emit.id.value();
  EXPECT_EQ(static_cast<size_t>(emit.first_index), client->tokens.size());
  for (const scheduler::SampledToken& token : emit.tokens) client->tokens.push_back(token.token);
}

void TakeResult(const scheduler::RequestResult& result, Client* client, Totals* totals) {
  ++client->results;
  ++totals->ended[result.status.code()];
  const std::vector<TokenId>& expected = client->work->expected;
  if (result.status.ok()) {
    EXPECT_EQ(client->tokens, expected) << "request " << result.id.value();
    return;
  }
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable) << result.status;
  ASSERT_LE(client->tokens.size(), expected.size());
  EXPECT_TRUE(std::equal(client->tokens.begin(), client->tokens.end(), expected.begin()))
      << "request " << result.id.value() << " failed after a wrong token";
}

ClusterOptions OptionsFor(uint64_t seed) {
  ClusterOptions options;
  options.seed = seed;
  options.prefill_workers = 2;
  options.decode_ranks = 2;
  options.router.max_attempts = 3;
  options.router.reserve_output_tokens = 8;
  options.decode.reserve_output_tokens = 8;
  options.decode.max_sequences = 8;
  options.decode.max_batch_rows = 32;
  options.decode.handoff_timeout = Duration::Millis(100);
  options.decode.release_timeout = Duration::Millis(500);
  options.prefill.slots = 4;
  options.prefill.chunk_tokens = seed % 3 == 0 ? 24 : 64;
  options.prefill.handoff_timeout = Duration::Millis(200);
  options.staging_bytes = seed % 2 == 0 ? 4096 : 64 << 10;
  return options;
}

// Rates from mild, where most requests are served, to such that most fail.
transport::FaultyOptions FaultsFor(uint64_t seed) {
  constexpr double kRates[] = {0.004, 0.012, 0.03, 0.06};
  const double rate = kRates[seed % std::size(kRates)];
  transport::FaultyOptions options;
  options.rates = {.drop = rate,
                   .delay = rate,
                   .reorder = rate,
                   .duplicate = rate,
                   .corrupt_payload = rate,
                   .corrupt_header = rate,
                   .truncate = rate / 2,
                   .cut = rate / 4};
  // In every other group of seeds late messages are later than the landing waits.
  options.max_delay = seed % 8 < 4 ? Duration::Millis(20) : Duration::Millis(400);
  return options;
}

class ModelFaultsTest : public testing::Test {
 protected:
  ModelFaultsTest() : loaded_(model::LoadTestModel("bf16-lora-yarn")) {
    work_ = MakeWork(*RunnerOf("oracle"));
  }

  std::shared_ptr<model::Runner> RunnerOf(const std::string& host) {
    std::shared_ptr<model::Runner>& runner = runners_[host];
    if (runner == nullptr) runner = NewRunner(loaded_);
    return runner;
  }

  void RunSeed(uint64_t seed, const transport::FaultyOptions& faults, Totals* totals);

  const std::shared_ptr<const model::LoadedModel> loaded_;
  std::map<std::string, std::shared_ptr<model::Runner>> runners_;  // by host name
  std::vector<Work> work_;
};

void ModelFaultsTest::RunSeed(uint64_t seed, const transport::FaultyOptions& faults,
                              Totals* totals) {
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  transport::InprocOptions inproc;
  inproc.max_message_bytes = 4096;  // three pages: a hand-off takes several messages of each layer
  inproc.staging_bytes = 64 << 10;
  inproc.max_posts_in_flight = 12;
  FaultyWires wires(seed, faults, inproc);
  ClusterOptions options = OptionsFor(seed);
  options.make_runner = [this](const HostContext& host) {
    return std::make_unique<BorrowedRunner>(RunnerOf(host.name), host.clock);
  };
  options.make_transport = [&wires](const HostContext& host) { return wires.MakeTransport(host); };

  EventQueue queue;
  std::map<RequestId, Client> clients;
  size_t ended = 0;
  const auto on_tokens = [&clients](const scheduler::EmitTokens& emit) {
    TakeTokens(emit, &clients.at(emit.id));
  };
  const auto on_result = [&](const scheduler::RequestResult& result) {
    TakeResult(result, &clients.at(result.id), totals);
    ++ended;
  };
  {
    Cluster cluster(options, queue, on_tokens, on_result);
    for (uint64_t i = 0; i < kRequestsPerSeed; ++i) {
      queue.At(Tick() + Duration::Millis(10) + Duration::Micros(700) * static_cast<int64_t>(i),
               [&, i] {
                 const Work& work = work_[(seed * kRequestsPerSeed + i) % work_.size()];
                 scheduler::Arrived arrived;
                 arrived.id = RequestId(seed << 8 | i);
                 arrived.prompt = work.prompt;
                 arrived.sampling = work.sampling;
                 clients[arrived.id].work = &work;
                 EXPECT_TRUE(cluster.Arrive(std::move(arrived), Duration::Seconds(600)));
               });
    }
    bool drain_asked = false;
    int events = 0;
    for (; events < kMaxEvents && queue.RunOne(); ++events) {
      if (ended < kRequestsPerSeed || drain_asked) continue;
      drain_asked = true;
      cluster.DrainRouter();
    }
    EXPECT_LT(events, kMaxEvents) << "the run does not come to an end";
    EXPECT_EQ(cluster.Leftovers(), "");
    EXPECT_TRUE(cluster.router_drained());
    const decode_worker::LandingReport& landing = cluster.counts().landing;
    totals->counts.retries += cluster.counts().retries;
    totals->counts.token_conflicts += cluster.counts().token_conflicts;
    totals->counts.handoff_timeouts += cluster.counts().handoff_timeouts;
    totals->counts.prefill_hit_tokens += cluster.counts().prefill_hit_tokens;
    totals->counts.decode_hit_tokens += cluster.counts().decode_hit_tokens;
    totals->counts.evicted_pages += cluster.counts().evicted_pages;
    totals->counts.landing.unknown_epoch += landing.unknown_epoch;
    totals->counts.landing.bad_header += landing.bad_header;
    totals->counts.landing.bad_checksum += landing.bad_checksum;
    totals->counts.landing.duplicate += landing.duplicate;
  }
  for (const auto& [id, client] : clients) EXPECT_EQ(client.results, 1) << id.value();
  AddCounts(wires.counts(), &totals->faults);
}

TEST_F(ModelFaultsTest, WithoutFaultsEveryRequestGetsItsTokens) {
  Totals totals;
  for (uint64_t seed = 1; seed <= 4; ++seed) RunSeed(seed, {}, &totals);
  EXPECT_EQ(totals.ended[absl::StatusCode::kOk], 4 * kRequestsPerSeed);
  EXPECT_EQ(totals.counts.retries, 0u);
}

TEST_F(ModelFaultsTest, RightTokensOrACleanErrorUnderTwoHundredSeeds) {
  Totals totals;
  for (uint64_t seed = 1; seed <= kSeeds && !HasFailure(); ++seed) {
    RunSeed(seed, FaultsFor(seed), &totals);
  }
  // The runs met what they are for: both outcomes, every kind of fault, every refusal of a message.
  const int served = totals.ended[absl::StatusCode::kOk];
  const int failed = totals.ended[absl::StatusCode::kUnavailable];
  EXPECT_EQ(served + failed, kSeeds * kRequestsPerSeed);
  EXPECT_GT(served, kSeeds * kRequestsPerSeed / 2);
  EXPECT_GT(failed, 10);
  const transport::FaultCounts& faults = totals.faults;
  for (const uint64_t count :
       {faults.dropped, faults.delayed, faults.reordered, faults.duplicated,
        faults.corrupted_payload, faults.corrupted_header, faults.truncated, faults.cut}) {
    EXPECT_GT(count, 20u);
  }
  EXPECT_EQ(faults.spared, 0u);
  const ClusterCounts& counts = totals.counts;
  for (const uint64_t count : {counts.landing.unknown_epoch, counts.landing.bad_header,
                               counts.landing.bad_checksum, counts.landing.duplicate}) {
    EXPECT_GT(count, 10u);
  }
  EXPECT_GT(counts.retries, 100u);
  EXPECT_GT(counts.handoff_timeouts, 20u);
  EXPECT_GT(counts.prefill_hit_tokens, 1000u);
  EXPECT_GT(counts.decode_hit_tokens, 1000u);
  EXPECT_EQ(counts.token_conflicts, 0u);
  RecordProperty("served", served);
  RecordProperty("failed", failed);
}

}  // namespace
}  // namespace baton::sim
