#include "base/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include <vector>

#include "base/gauge_share.h"
#include "base/thread.h"

namespace baton {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MetricsOptions Options(bool aliases) {
  return {.version = "1.2.3",
          .revision = "abc",
          .model_name = "demo",
          .kv_format = "bf16",
          .vllm_aliases = aliases};
}

// Binds every group, so that every series is there.
std::string RenderAll(bool aliases) {
  Metrics metrics(Options(aliases));
  metrics.router();
  metrics.prefill();
  metrics.decode();
  metrics.experts();
  metrics.WorkerUp("decode", "127.0.0.1:1").Set(1);
  return metrics.Render();
}

// Runs `promtool check metrics` on `text`; returns its complaints, and its exit status in
// `*status`.
std::string Promtool(const std::string& text, int* status) {
  const std::string path = ::testing::TempDir() + "baton_metrics_test.txt";
  std::ofstream(path) << text;
  FILE* pipe = popen(("promtool check metrics < " + path + " 2>&1").c_str(), "r");
  std::string output;
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  *status = pclose(pipe);
  return output;
}

TEST(Metrics, PromtoolFindsNothingToSayAboutTheNativeSeries) {
  int status = -1;
  EXPECT_EQ(Promtool(RenderAll(/*aliases=*/false), &status), "");
  EXPECT_EQ(status, 0);
}

// promtool wants no colons in scraped names, but the aliases exist to have exactly those names; and
// some of them spell units its own way. It must still parse everything.
TEST(Metrics, PromtoolParsesTheAliasesAndMindsOnlyTheirNames) {
  int status = -1;
  std::istringstream complaints(Promtool(RenderAll(/*aliases=*/true), &status));
  for (std::string line; std::getline(complaints, line);) {
    EXPECT_THAT(line, ::testing::StartsWith("vllm:"));
    EXPECT_THAT(line, HasSubstr("metric names should not contain ':'"));
  }
}

TEST(Metrics, EverySeriesOfTheTableIsRendered) {
  const std::string text = RenderAll(/*aliases=*/false);
  for (const MetricSpec& spec : MetricSpecs()) {
    const std::string type =
        "# TYPE " + std::string(spec.name) + " " + std::string(MetricTypeName(spec.type)) + "\n";
    EXPECT_THAT(text, HasSubstr(type));
    EXPECT_EQ(spec.type == MetricType::kHistogram, !spec.buckets.empty()) << spec.name;
  }
}

TEST(Metrics, EveryAliasIsRenderedAndNamesASeries) {
  const std::string text = RenderAll(/*aliases=*/true);
  std::set<std::string_view> names;
  for (const MetricSpec& spec : MetricSpecs()) names.insert(spec.name);
  for (const MetricAlias& alias : MetricAliases()) {
    EXPECT_TRUE(names.contains(alias.source)) << alias.source;
    EXPECT_THAT(text, HasSubstr("# TYPE " + std::string(alias.name) + " "));
  }
}

TEST(Metrics, AProcessShowsOnlyItsRoles) {
  Metrics metrics(Options(true));
  metrics.prefill();
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("baton_batch_rows_count{role=\"prefill\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("baton_ttft_seconds")));
  EXPECT_THAT(text, Not(HasSubstr("vllm:time_to_first_token_seconds")));
}

// A prefill group's pages, queue and tokens are the leader's to show.
TEST(Metrics, AFollowerShowsItsPassesAndHandoffsAlone) {
  Metrics metrics(Options(true));
  const PrefillMetrics& follower = metrics.prefill_follower();
  follower.worker.batch_rows.Observe(3);
  follower.handoff.bytes_total.Add(7);
  follower.tokens_total.Add(3);
  follower.worker.kv_pages_used.Set(1);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("baton_batch_rows_sum{role=\"prefill\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("baton_step_seconds_count{role=\"prefill\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("baton_handoff_sent_bytes_total 7\n"));
  EXPECT_THAT(text, Not(HasSubstr("baton_prefill_tokens_total")));
  EXPECT_THAT(text, Not(HasSubstr("baton_kv_pages")));
  EXPECT_THAT(text, Not(HasSubstr("vllm:")));
}

TEST(Metrics, HandlesRecord) {
  Metrics metrics(Options(true));
  const RouterMetrics& router = metrics.router();
  router.ttft_stage_seconds[TtftStage::kPrefill].Observe(0.25);
  router.ttft_seconds.Observe(0.5);
  router.requests_total[Outcome::kStop].Add();
  router.requests_total[Outcome::kCancelled].Add(2);
  router.queue_requests.Set(7);
  router.itl_seconds.Observe(0.125);
  router.tpot_seconds.Observe(0.75);
  const DecodeMetrics& decode = metrics.decode();
  decode.worker.kv_pages_capacity.Set(8);
  decode.worker.kv_pages_used.Set(2);
  decode.handoff_failures_total[HandoffFailure::kChecksum].Add();
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("baton_build_info{revision=\"abc\",version=\"1.2.3\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("baton_ttft_stage_seconds_sum{stage=\"prefill\"} 0.25\n"));
  EXPECT_THAT(text, HasSubstr("baton_requests_total{outcome=\"cancelled\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("baton_requests_total{outcome=\"not_found\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("baton_handoff_failures_total{cause=\"checksum\"} 1\n"));
  EXPECT_THAT(
      text,
      HasSubstr("vllm:time_to_first_token_seconds_sum{model_name=\"demo\",engine=\"0\"} 0.5\n"));
  // The older name means each gap too (docs/metrics.md).
  for (const char* gaps :
       {"vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"}) {
    EXPECT_THAT(text,
                HasSubstr(std::string(gaps) + "_sum{model_name=\"demo\",engine=\"0\"} 0.125\n"));
  }
  EXPECT_THAT(text, HasSubstr("vllm:request_time_per_output_token_seconds_sum{model_name=\"demo\","
                              "engine=\"0\"} 0.75\n"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_waiting{model_name=\"demo\",engine=\"0\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc{model_name=\"demo\",engine=\"0\"} 0.25\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:request_success_total{finished_reason=\"abort\",model_name=\"demo\","
                        "engine=\"0\"} 2\n"));
}

TEST(Metrics, UnboundHandlesRecordNothing) {
  CounterHandle().Add();
  GaugeHandle().Set(1);
  HistogramHandle().Observe(1);
  RouterMetrics().requests_total[Outcome::kStop].Add();
}

TEST(Metrics, AGaugeShowsTheSumOfItsShares) {
  Metrics metrics(Options(false));
  const GaugeHandle gauge = metrics.decode().landing_requests;
  GaugeShare one(gauge);
  one.Set(5);
  {
    GaugeShare other(gauge);
    other.Set(3);
    one.Set(4);
    EXPECT_THAT(metrics.Render(), HasSubstr("baton_landing_requests 7\n"));
  }
  EXPECT_THAT(metrics.Render(), HasSubstr("baton_landing_requests 4\n"));
}

TEST(Metrics, ThreadsRecordWhileAnotherRenders) {
  Metrics metrics(Options(true));
  constexpr int kThreads = 4, kAdds = 2000;
  std::vector<Thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back("recorder", [&metrics] {
      const RouterMetrics& router = metrics.router();
      for (int i = 0; i < kAdds; ++i) {
        router.output_tokens_total.Add();
        router.itl_seconds.Observe(0.01);
      }
    });
  }
  for (int i = 0; i < 20; ++i) metrics.Render();
  for (Thread& thread : threads) thread.Join();
  EXPECT_THAT(metrics.Render(), HasSubstr("baton_output_tokens_total 8000\n"));
}

// docs/metrics.md has one table row for each series and alias, with the table's own words.
TEST(Metrics, TheDocumentListsTheTable) {
  std::ifstream file(std::string(BATON_SOURCE_DIR) + "/docs/metrics.md");
  ASSERT_TRUE(file) << "docs/metrics.md is missing";
  std::set<std::string> actual, expected;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("| `")) actual.insert(line);
  }
  for (const MetricSpec& spec : MetricSpecs()) {
    const std::string label = spec.label.empty() ? "" : "`" + std::string(spec.label) + "`";
    expected.insert("| `" + std::string(spec.name) + "` | " +
                    std::string(MetricTypeName(spec.type)) + " | " + label + " | " +
                    std::string(spec.help) + " |");
  }
  for (const MetricAlias& alias : MetricAliases()) {
    expected.insert("| `" + std::string(alias.name) + "` | `" + std::string(alias.source) + "` | " +
                    std::string(alias.how) + " |");
  }
  for (const std::string& row : expected)
    EXPECT_TRUE(actual.contains(row)) << "missing row:\n" << row;
  for (const std::string& row : actual)
    EXPECT_TRUE(expected.contains(row)) << "stale row:\n" << row;
}

}  // namespace
}  // namespace baton
