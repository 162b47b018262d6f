#include "tests/sim/simulation.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"

namespace baton::sim {
namespace {

using scheduler::EmitTokens;
using scheduler::FinishReason;
using scheduler::RequestResult;

// No run needs more; a loop that feeds itself for ever does.
constexpr uint64_t kMaxEvents = 200'000'000;
// Turns that may go on.
constexpr size_t kConversations = 24;
constexpr Tick kEndOfTime = Tick::FromNanos(24LL * 3600 * 1'000'000'000);

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options)
      : options_(options),
        rng_(options.seed),
        runner_rng_(options.seed ^ 0x5EED),
        groups_(options.groups.ranks == 0
                    ? nullptr
                    : std::make_unique<SteppedGroups>(
                          options.groups, options.cluster.decode_ranks, options.seed, queue_,
                          [this](const std::string& what) { Problem(what); })),
        cluster_(
            ClusterFor(options), queue_, [this](const EmitTokens& t) { OnTokens(t); },
            [this](const RequestResult& r) { OnResult(r); }) {
    if (groups_ != nullptr) groups_->Attach(cluster_);
  }

  SimulationResult Run();

 private:
  struct Client {
    OracleOutput expected;
    size_t delivered = 0;
    int results = 0;
    bool cancelled = false;
    bool short_deadline = false;
  };

  ClusterOptions ClusterFor(const SimulationOptions& options) {
    ClusterOptions cluster = options.cluster;
    cluster.seed = options.seed * 7919 + 1;
    if (groups_ != nullptr) {
      cluster.make_runner = [this](const HostContext& host) { return MakeGroupedRunner(host); };
    }
    return cluster;
  }
  std::unique_ptr<model::Runner> MakeGroupedRunner(const HostContext& host);

  void Problem(std::string what) {
    if (result_.problems.size() < 10) {
      result_.problems.push_back(absl::StrCat("at ", queue_.now().nanos(), "ns: ", what));
    }
  }
  Duration Exponential(Duration mean);
  std::vector<TokenId> NewPrompt();
  void Arrive(int number);
  void Fault();
  void OnTokens(const EmitTokens& emit);
  void OnResult(const RequestResult& result);
  void CheckClients();

  const SimulationOptions options_;
  Rng rng_;
  EventQueue queue_;
  std::map<RequestId, Client> clients_;
  std::vector<std::vector<TokenId>> conversations_;
  int open_ = 0;  // arrived, not ended
  int to_come_ = 0;
  SimulationResult result_;
  Rng runner_rng_;
  std::unique_ptr<SteppedGroups> groups_;  // null: decode ranks step alone
  Cluster cluster_;
};

// Decode ranks leave the time that a pass takes to their groups.
std::unique_ptr<model::Runner> Simulation::MakeGroupedRunner(const HostContext& host) {
  const ClusterOptions& cluster = options_.cluster;
  const bool decode = host.name.starts_with("decode-");
  StubRunnerOptions runner;
  runner.total_pages = decode ? cluster.decode_pages : cluster.prefill_pages;
  runner.model_seed = cluster.model_seed;
  runner.failure_chance = cluster.pass_failure;
  runner.slice_failure_chance = cluster.slice_failure;
  runner.fault_seed = runner_rng_.Next();
  if (decode) return groups_->MakeRunner(std::stoi(host.name.substr(7)), runner);
  runner.pass_cost = Duration::Micros(300);
  runner.row_cost = Duration::Micros(10);
  return std::make_unique<StubRunner>(runner, host.clock);
}

// Exponentially distributed, by inversion of the geometric one: no floating-point logarithm, whose
// last bit differs between machines, enters the trace.
Duration Simulation::Exponential(Duration mean) {
  int64_t halves = 0;
  while (halves < 12 && rng_.Chance(0.5)) ++halves;
  const int64_t scale = mean.nanos() * 7 / 10;
  return Duration::Nanos(halves * scale +
                         static_cast<int64_t>(rng_.Below(static_cast<uint64_t>(scale) + 1)));
}

// Mostly short prompts, some long ones; some begin as an earlier prompt did, or are the next turn
// of its conversation.
std::vector<TokenId> Simulation::NewPrompt() {
  const auto longest = static_cast<uint64_t>(options_.max_prompt);
  uint64_t length = 1 + rng_.Below(rng_.Chance(0.8) ? std::max<uint64_t>(longest / 4, 1) : longest);
  std::vector<TokenId> prompt;
  if (!conversations_.empty() && rng_.Chance(options_.shared_chance)) {
    const std::vector<TokenId>& earlier = conversations_[rng_.Below(conversations_.size())];
    const uint64_t shared = rng_.Chance(0.5) ? earlier.size() : rng_.Below(earlier.size() + 1);
    prompt.assign(earlier.begin(),
                  earlier.begin() + static_cast<ptrdiff_t>(std::min(shared, longest - 1)));
    length = prompt.size() + 1 + rng_.Below(std::min<uint64_t>(longest - prompt.size(), 20));
  }
  while (prompt.size() < length) {
    prompt.push_back(static_cast<TokenId>(rng_.Below(kVocabulary)));
  }
  return prompt;
}

void Simulation::Arrive(int number) {
  scheduler::Arrived arrived;
  arrived.id = RequestId((options_.seed << 32) | static_cast<uint64_t>(number));
  arrived.prompt = NewPrompt();
  if (rng_.Chance(0.05)) arrived.cache_salt = "tenant";
  arrived.sampling.seed = rng_.Next();
  arrived.sampling.max_tokens =
      1 + static_cast<int32_t>(rng_.Below(static_cast<uint64_t>(options_.max_tokens)));
  arrived.sampling.ignore_eos = rng_.Chance(0.5);
  if (rng_.Chance(0.2)) arrived.sampling.stop_token_ids = {7, 11};

  Client client;
  client.expected = OracleTokens(arrived.prompt, arrived.sampling, options_.cluster.model_seed);
  // What the next turn would begin with; of the last few requests, so that caches can hold it.
  std::vector<TokenId> turn = arrived.prompt;
  turn.insert(turn.end(), client.expected.tokens.begin(), client.expected.tokens.end());
  if (conversations_.size() < kConversations) {
    conversations_.push_back(std::move(turn));
  } else {
    conversations_[static_cast<size_t>(number) % kConversations] = std::move(turn);
  }
  Duration deadline = options_.deadline;
  if (rng_.Chance(options_.short_deadline_chance)) {
    client.short_deadline = true;
    deadline = Duration::Micros(static_cast<int64_t>(1'000 + rng_.Below(200'000)));
  }
  const RequestId id = arrived.id;
  if (rng_.Chance(options_.cancel_chance)) {
    client.cancelled = true;
    const Duration patience = Exponential(Duration::Millis(20));
    queue_.After(patience, [this, id] { cluster_.CancelClient(id); });
  }
  clients_.emplace(id, std::move(client));
  ++open_;
  --to_come_;
  if (!cluster_.Arrive(std::move(arrived), deadline)) {
    ++result_.refused_at_door;
    --open_;
    clients_.erase(id);
  }
}

void Simulation::Fault() {
  const auto rank =
      static_cast<int>(rng_.Below(static_cast<uint64_t>(options_.cluster.decode_ranks)));
  const auto worker =
      static_cast<int>(rng_.Below(static_cast<uint64_t>(options_.cluster.prefill_workers)));
  const Duration length = Duration::Millis(5) + Exponential(Duration::Millis(100));
  switch (rng_.Below(7)) {
    case 0:
      return cluster_.CrashDecode(rank, length);
    case 1:
      return cluster_.CrashPrefill(worker, length);
    case 2:
      return cluster_.CutRouterFromDecode(rank, length);
    case 3:
      return groups_ != nullptr ? groups_->Stall(rank, length) : cluster_.StallDecode(rank, length);
    case 4:
      return cluster_.StallPrefill(worker, length);
    case 5:
      return cluster_.DrainDecode(rank, length);
    default:
      return cluster_.DrainPrefill(worker, length);
  }
}

void Simulation::OnTokens(const EmitTokens& emit) {
  Client& client = clients_.at(emit.id);
  if (client.results > 0) Problem(absl::StrCat("tokens after the end of ", emit.id.value()));
  if (emit.first_index != static_cast<int32_t>(client.delivered)) {
    Problem(absl::StrCat("request ", emit.id.value(), ": token ", emit.first_index, " came when ",
                         client.delivered, " were there"));
  }
  for (const scheduler::SampledToken& token : emit.tokens) {
    const auto& expected = client.expected.tokens;
    if (client.delivered >= expected.size() || expected[client.delivered] != token.token) {
      Problem(absl::StrCat("request ", emit.id.value(), ": token ", client.delivered,
                           " is wrong: ", token.token));
    }
    ++client.delivered;
    ++result_.tokens;
  }
}

void Simulation::OnResult(const RequestResult& result) {
  Client& client = clients_.at(result.id);
  const std::string name = absl::StrCat("request ", result.id.value(), ": ");
  if (++client.results > 1) Problem(absl::StrCat(name, "ended twice"));
  --open_;
  ++result_.ended[result.status.code()];
  if (result.output_tokens != static_cast<int32_t>(client.delivered)) {
    Problem(absl::StrCat(name, "says ", result.output_tokens, " tokens, delivered were ",
                         client.delivered));
  }
  if (result.has_first_token &&
      (result.stages.Total() != result.ttft || result.ttft > result.total)) {
    Problem(absl::StrCat(name, "stages add up to ", result.stages.Total().nanos(), ", ttft is ",
                         result.ttft.nanos()));
  }
  switch (result.status.code()) {
    case absl::StatusCode::kOk:
      if (client.delivered != client.expected.tokens.size() ||
          result.reason != client.expected.reason) {
        Problem(absl::StrCat(name, "ended well with ", client.delivered, " of ",
                             client.expected.tokens.size(), " tokens"));
      }
      if (!result.has_first_token) Problem(absl::StrCat(name, "has no first token"));
      return;
    case absl::StatusCode::kCancelled:
      if (!client.cancelled) Problem(absl::StrCat(name, "was cancelled by nobody"));
      return;
    case absl::StatusCode::kDeadlineExceeded:
      if (!client.short_deadline) Problem(absl::StrCat(name, "took too long"));
      return;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return;  // counted; the caller says how many may be
    default:
      Problem(absl::StrCat(name, result.status.ToString()));
  }
}

SimulationResult Simulation::Run() {
  Tick at = Tick() + Duration::Millis(10);  // the workers have joined
  to_come_ = options_.requests;
  for (int i = 0; i < options_.requests; ++i) {
    at = at + Exponential(options_.mean_gap);
    queue_.At(at, [this, i] { Arrive(i); });
  }
  const Tick last_arrival = at;
  if (options_.mean_fault_gap > Duration()) {
    for (Tick when = Tick() + Duration::Millis(15); when < last_arrival;
         when = when + Exponential(options_.mean_fault_gap)) {
      queue_.At(when, [this] { Fault(); });
    }
  }
  queue_.At(last_arrival + Duration::Millis(1), [this] { cluster_.StopTransportFaults(); });

  uint64_t events = 0;
  bool drain_asked = false;
  while (queue_.RunOne()) {
    if (++events > kMaxEvents || queue_.now() > kEndOfTime) {
      Problem("the run does not come to an end");
      break;
    }
    if (to_come_ == 0 && open_ == 0 && !drain_asked) {
      drain_asked = true;
      cluster_.DrainRouter();
      if (groups_ != nullptr) groups_->Finish();
    }
  }
  CheckClients();
  result_.trace = cluster_.trace();
  result_.simulated = queue_.now() - Tick();
  result_.counts = cluster_.counts();
  result_.transport = cluster_.transport_counts();
  if (groups_ != nullptr) result_.experts = groups_->totals();
  return std::move(result_);
}

void Simulation::CheckClients() {
  if (open_ > 0) Problem(absl::StrCat(open_, " requests never ended"));
  for (const auto& [id, client] : clients_) {
    if (client.results != 1) {
      Problem(absl::StrCat("request ", id.value(), " ended ", client.results, " times"));
    }
  }
  const std::string left = cluster_.Leftovers();
  if (!left.empty()) Problem(absl::StrCat("left over: ", left));
  if (open_ == 0 && !cluster_.router_drained()) Problem("the router did not drain");
}

}  // namespace

SimulationResult RunSimulation(const SimulationOptions& options) {
  return Simulation(options).Run();
}

std::string SimulationResult::Summary() const {
  std::string text = absl::StrCat("trace ", trace, ", simulated ", simulated.millis(), " ms, ",
                                  tokens, " tokens, ", counts.ticks, " ticks; ended");
  for (const auto& [code, count] : ended) {
    absl::StrAppend(&text, " ", absl::StatusCodeToString(code), "=", count);
  }
  absl::StrAppend(
      &text, "; retries ", counts.retries, ", refusals ", counts.refusals, ", preemptions ",
      counts.preemptions, ", duplicate tokens ", counts.duplicate_tokens, ", conflicts ",
      counts.token_conflicts, ", release timeouts ", counts.release_timeouts, ", stale ",
      counts.stale_messages, ", pass failures ", counts.pass_failures, "; hand-off: timeouts ",
      counts.handoff_timeouts, ", corrupt ", counts.handoff_corrupt, ", messages ",
      counts.landing.messages, ", refused epoch ", counts.landing.unknown_epoch, " header ",
      counts.landing.bad_header, " checksum ", counts.landing.bad_checksum, " duplicate ",
      counts.landing.duplicate, "; cached: prefill ", counts.prefill_hit_tokens, " of ",
      counts.prefill_lookup_tokens, " tokens, decode ", counts.decode_hit_tokens, " of ",
      counts.decode_lookup_tokens, ", evicted ", counts.evicted_pages, "; wire: posted ",
      transport.posted, ", dropped ", transport.dropped, ", corrupted ", transport.corrupted,
      ", cut ", transport.cut);
  if (experts.steps > 0) {
    absl::StrAppend(&text, "; groups: steps ", experts.steps, ", with masked ranks ",
                    experts.masked_steps, ", switches ", experts.switches, ", installed ",
                    experts.installed, ", rolled back ", experts.rolled_back, ", restored ",
                    experts.restored, ", takeovers ", experts.takeovers, ", stopped ",
                    experts.stopped, ", balancedness ", experts.first_mean / experts.first_most,
                    " then ", experts.later_mean / experts.later_most);
  }
  for (const std::string& problem : problems) absl::StrAppend(&text, "\n  PROBLEM ", problem);
  return text;
}

SimulationOptions Hostile(uint64_t seed, int requests) {
  SimulationOptions options;
  options.seed = seed;
  options.requests = requests;
  options.cancel_chance = 0.1;
  options.short_deadline_chance = 0.05;
  ClusterOptions& cluster = options.cluster;
  // Memory from ample to so tight that sequences push each other out.
  Rng rng(seed);
  const auto one_of = [&rng](std::initializer_list<int32_t> values) {
    return values.begin()[rng.Below(values.size())];
  };
  options.mean_gap = Duration::Micros(one_of({250, 600, 1'100}));
  options.mean_fault_gap = Duration::Millis(one_of({15, 60}));
  cluster.decode_pages = one_of({18, 26, 40, 96});
  cluster.prefill_pages = one_of({16, 30, 96});
  cluster.decode.reserve_output_tokens = one_of({1, 4, 16, 64});
  cluster.router.reserve_output_tokens = cluster.decode.reserve_output_tokens;
  cluster.decode.pages_per_credit = one_of({1, 4, 8});
  cluster.prefill.chunk_tokens = one_of({8, 64, 150});
  cluster.staging_bytes = static_cast<uint64_t>(one_of({256, 1024, 4096}));
  cluster.router.max_queued = one_of({60, 200});
  cluster.pass_failure = 0.0005;
  cluster.slice_failure = 0.0002;
  cluster.transport.drop = 0.0005;
  cluster.transport.corrupt_payload = 0.0005;
  cluster.transport.corrupt_header = 0.0005;
  cluster.transport.duplicate = 0.001;
  cluster.transport.hold_back = 0.001;
  cluster.transport.cut = 0.0002;
  cluster.router.max_attempts = 6;
  cluster.decode.max_landings = 6;
  cluster.decode.max_sequences = 16;
  cluster.decode.max_batch_rows = 32;
  cluster.decode.handoff_timeout = Duration::Millis(100);
  cluster.decode.prefill_timeout = Duration::Millis(2'000);
  cluster.decode.release_timeout = Duration::Millis(500);
  cluster.prefill.slots = 6;
  cluster.prefill.handoff_timeout = Duration::Millis(200);
  return options;
}

}  // namespace baton::sim
