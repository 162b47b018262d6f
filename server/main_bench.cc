// baton bench: load on a running server, or on one that it starts in its own process.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "base/status_macros.h"
#include "base/thread.h"
#include "server/client.h"
#include "server/commands.h"
#include "server/exit_code.h"
#include "server/main_bench_experts.h"
#include "server/main_embedded.h"
#include "server/main_roles.h"

namespace baton::server {
namespace {

struct BenchOptions {
  int streams = 0;
  int requests = 0;
  int prompt_tokens = 0;
  int shared_tokens = 0;  // that all prompts begin with
  int output_tokens = 0;
  uint64_t seed = 0;
  std::string cache_salt;  // of this run: what earlier runs left in caches does not count
};

// What the clients saw, in milliseconds.
struct Samples {
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> itl;
  std::vector<double> e2e;
  int64_t output_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompts
  int failed = 0;
  std::string first_error;
};

double Ms(Duration duration) { return static_cast<double>(duration.nanos()) * 1e-6; }

// Request `index` of the run: random ids, the same for the same seed.
ClientRequest MakeRequest(const BenchOptions& options, const ClientModelInfo& model, int index) {
  Rng shared(options.seed);
  Rng rng(options.seed * 1'000'003 + static_cast<uint64_t>(index));
  ClientRequest request;
  for (int i = 0; i < options.prompt_tokens; ++i) {
    Rng& source = i < options.shared_tokens ? shared : rng;
    request.token_ids.push_back(
        static_cast<TokenId>(source.Below(static_cast<uint64_t>(model.vocab_size))));
  }
  request.cache_salt = options.cache_salt;
  request.max_tokens = options.output_tokens;
  request.ignore_eos = true;
  request.seed = rng.Next() >> 1;
  return request;
}

void RunOne(CompletionClient& client, const ClientRequest& request, Clock& clock, std::mutex& mutex,
            Samples* samples) {
  const Tick start = clock.Now();
  Tick first, last;
  std::vector<double> gaps;
  int64_t tokens = 0;
  const absl::StatusOr<ClientResult> result =
      client.Generate(request, [&](const std::string&, const std::vector<TokenId>& ids) {
        if (ids.empty()) return true;
        const Tick now = clock.Now();
        if (tokens == 0) {
          first = now;
        } else {
          gaps.push_back(Ms(now - last));
        }
        last = now;
        tokens += static_cast<int64_t>(ids.size());
        return true;
      });
  const Tick end = clock.Now();
  std::lock_guard<std::mutex> lock(mutex);
  if (!result.ok() || tokens == 0) {
    if (samples->failed++ == 0) {
      samples->first_error = result.ok() ? "no tokens" : std::string(result.status().message());
    }
    return;
  }
  samples->ttft.push_back(Ms(first - start));
  samples->e2e.push_back(Ms(end - start));
  samples->itl.insert(samples->itl.end(), gaps.begin(), gaps.end());
  if (tokens > 1) samples->tpot.push_back(Ms(last - first) / static_cast<double>(tokens - 1));
  samples->output_tokens += tokens;
  samples->cached_tokens += result->cached_tokens;
}

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const size_t index =
      std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index),
                   values.end());
  return values[index];
}

void PrintRow(std::ostream& out, const char* name, std::vector<double>& values) {
  char line[128];
  std::snprintf(line, sizeof line, "%-10s %10.2f %10.2f %10.2f\n", name, Percentile(values, 0.5),
                Percentile(values, 0.9), Percentile(values, 0.99));
  out << line;
}

void PrintTable(const CommandContext& context, const BenchOptions& options, Samples& samples,
                Duration wall) {
  const double seconds = std::max(wall.seconds(), 1e-9);
  char line[256];
  std::snprintf(line, sizeof line,
                "%d requests, %d at a time, prompt %d tokens, output %d tokens: %d failed, %.2f s\n"
                "\n%-10s %10s %10s %10s\n",
                options.requests, options.streams, options.prompt_tokens, options.output_tokens,
                samples.failed, seconds, "ms", "p50", "p90", "p99");
  context.out << line;
  PrintRow(context.out, "TTFT", samples.ttft);
  PrintRow(context.out, "TPOT", samples.tpot);
  PrintRow(context.out, "ITL", samples.itl);
  PrintRow(context.out, "end to end", samples.e2e);
  const int done = options.requests - samples.failed;
  std::snprintf(line, sizeof line,
                "\noutput %.1f tokens/s, prompt %.1f tokens/s (%.0f %% cached), %.2f requests/s\n",
                static_cast<double>(samples.output_tokens) / seconds,
                static_cast<double>(done) * options.prompt_tokens / seconds,
                100.0 * static_cast<double>(samples.cached_tokens) /
                    std::max(static_cast<double>(done) * options.prompt_tokens, 1.0),
                done / seconds);
  context.out << line << std::flush;
  if (samples.failed > 0) context.err << "first failure: " << samples.first_error << std::endl;
}

using ClientFactory = std::function<std::unique_ptr<CompletionClient>()>;

absl::StatusOr<int> RunLoad(const CommandContext& context, const BenchOptions& options,
                            const ClientFactory& connect) {
  MonotonicClock clock;
  BATON_ASSIGN_OR_RETURN(const ClientModelInfo model, connect()->GetModelInfo());
  std::mutex mutex;
  Samples samples;
  std::atomic<int> next{0};
  const Tick start = clock.Now();
  {
    std::vector<Thread> threads;
    for (int i = 0; i < options.streams; ++i) {
      threads.emplace_back("bench", [&] {
        const std::unique_ptr<CompletionClient> client = connect();
        for (int index = next++; index < options.requests; index = next++) {
          RunOne(*client, MakeRequest(options, model, index), clock, mutex, &samples);
        }
      });
    }
  }
  PrintTable(context, options, samples, clock.Now() - start);
  return samples.failed == 0 ? kExitOk : kExitFailure;
}

absl::StatusOr<int> BenchEmbedded(const CommandContext& context, const BenchOptions& options) {
  MonotonicClock clock;
  BATON_ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(context.config()));
  BATON_ASSIGN_OR_RETURN(EmbeddedParts parts,
                         MakeEmbeddedParts(context.config(), files, context.log));
  Metrics metrics(MetricsOptionsFor(context.config(), files.description));
  BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Embedded> embedded,
                         Embedded::Start(std::move(parts), clock, metrics, context.log));
  return RunLoad(context, options, [&] { return MakeCompletionClient(embedded->Channel()); });
}

absl::StatusOr<int> Bench(const CommandContext& context) {
  if (context.arguments.size() == 1 && context.arguments[0] == "experts") {
    return RunExpertBench(context);
  }
  if (context.arguments[0] != "serve") {
    context.err << "error: \"" << context.arguments[0]
                << "\" cannot be measured; baton bench [flags] serve|experts" << std::endl;
    return kExitUsage;
  }
  const FlagValues& flags = context.flags;
  BenchOptions options;
  options.streams = static_cast<int>(flags.integer("streams"));
  options.requests = static_cast<int>(flags.integer("requests"));
  options.prompt_tokens = static_cast<int>(flags.integer("prompt-tokens"));
  options.shared_tokens = static_cast<int>(flags.integer("shared-tokens"));
  options.output_tokens = static_cast<int>(flags.integer("output-tokens"));
  options.seed = static_cast<uint64_t>(flags.integer("seed"));
  std::random_device random;
  options.cache_salt = absl::StrCat("bench ", random(), " ", random());
  const std::string address = flags.text("server");
  if (address.empty()) return BenchEmbedded(context, options);
  return RunLoad(context, options, [&] { return ConnectCompletionClient(address); });
}

std::vector<CommandFlag> ServeFlags() {
  return {{"server", FlagType::kAddress, "A running server. Not given: one in this process.", ""},
          {"streams", FlagType::kInteger, "Requests in flight.", "8", "requests", 1, 1024},
          {"requests", FlagType::kInteger, "Requests in all.", "32", "requests", 1, 1e7},
          {"prompt-tokens", FlagType::kInteger, "Length of every prompt.", "200", "tokens", 1, 1e6},
          {"shared-tokens", FlagType::kInteger,
           "Tokens that all prompts begin with: what a prefix cache saves.", "0", "tokens", 0, 1e6},
          {"output-tokens", FlagType::kInteger, "Length of every output.", "128", "tokens", 1, 1e6},
          {"seed", FlagType::kInteger, "Of prompts and sampling.", "1", "", 0, 9e15}};
}

}  // namespace

Command BenchCommand() {
  std::vector<CommandFlag> flags = ServeFlags();
  const std::vector<CommandFlag> expert_flags = ExpertBenchFlags();
  flags.insert(flags.end(), expert_flags.begin(), expert_flags.end());
  return {
      .name = "bench",
      .summary = "measure TTFT, TPOT, ITL and throughput under load",
      .description =
          "`baton bench serve` keeps a number of requests in flight and prints TTFT, TPOT, ITL and "
          "end-to-end latency (p50, p90, p99) and tokens per second, as the clients see them. "
          "Without --server it starts a server with all roles in its own process. "
          "`baton bench experts` simulates skewed expert load on a group of ranks: without "
          "redundant experts, with static and with live ones.",
      .arguments = "serve|experts",
      .min_arguments = 1,
      .max_arguments = 1,
      .flags = std::move(flags),
      .config = {"model", "router", "prefill", "decode", "handoff", "kernels", "group", "log"},
      .run = [](const CommandContext& context) { return ExitCode(context, Bench(context)); }};
}

}  // namespace baton::server
