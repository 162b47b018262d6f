#include "base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "base/check.h"

namespace baton {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

constexpr std::string_view kTtftStages[] = {"queue", "prefill_wait", "prefill", "transfer_exposed",
                                            "decode_wait"};
constexpr std::string_view kOutcomes[] = {"stop",
                                          "length",
                                          "cancelled",
                                          "invalid_argument",
                                          "not_found",
                                          "resource_exhausted",
                                          "deadline_exceeded",
                                          "unavailable",
                                          "internal"};
constexpr std::string_view kRetryCauses[] = {"refused", "preempted", "handoff", "worker_lost"};
constexpr std::string_view kHandoffFailures[] = {"epoch",     "checksum",  "timeout",
                                                 "peer_lost", "duplicate", "malformed"};

constexpr std::string_view kRebalances[] = {"installed", "not_worth", "rolled_back", "refused"};

template <typename Enum, size_t N>
std::string_view NameOf(Enum value, const std::string_view (&names)[N]) {
  static_assert(N == static_cast<size_t>(Enum::kCount), "one name for each value");
  const size_t index = static_cast<size_t>(value);
  BATON_CHECK_LT(index, N);
  return names[index];
}

const MetricSpec& SpecOf(std::string_view name) {
  const std::span<const MetricSpec> specs = MetricSpecs();
  const auto spec = std::find_if(specs.begin(), specs.end(),
                                 [name](const MetricSpec& s) { return s.name == name; });
  BATON_CHECK_MSG(spec != specs.end(), "no metric of this name: " + std::string(name));
  return *spec;
}

// --- Aliases: made from the collected native families when rendering, so recording costs nothing
// extra.

using Families = std::map<std::string, const MetricFamily*, std::less<>>;
using Transform = std::vector<ClientMetric> (*)(const MetricFamily& source,
                                                const Families& families);

std::string LabelOf(const ClientMetric& metric, std::string_view name) {
  for (const auto& label : metric.label) {
    if (label.name == name) return label.value;
  }
  return std::string();
}

std::vector<ClientMetric> Same(const MetricFamily& source, const Families&) {
  return source.metric;
}

std::vector<ClientMetric> SumOfGauges(const MetricFamily& source, const Families&) {
  ClientMetric sum;
  for (const ClientMetric& metric : source.metric) sum.gauge.value += metric.gauge.value;
  return {sum};
}

// Used / capacity of decode's pages, or of prefill's in a process without decode.
std::vector<ClientMetric> UsedShare(const MetricFamily& used, const Families& families) {
  const auto capacity = families.find("baton_kv_pages_capacity");
  if (capacity == families.end()) return {};
  for (const std::string_view role : {"decode", "prefill"}) {
    const auto has_role = [role](const ClientMetric& m) { return LabelOf(m, "role") == role; };
    const auto u = std::find_if(used.metric.begin(), used.metric.end(), has_role);
    const auto& pages = capacity->second->metric;
    const auto c = std::find_if(pages.begin(), pages.end(), has_role);
    if (u == used.metric.end() || c == pages.end()) continue;
    ClientMetric share;
    if (c->gauge.value > 0) share.gauge.value = u->gauge.value / c->gauge.value;
    return {share};
  }
  return {};
}

std::vector<ClientMetric> Finished(const MetricFamily& requests, const Families&) {
  std::vector<ClientMetric> out;
  for (const ClientMetric& metric : requests.metric) {
    const std::string outcome = LabelOf(metric, "outcome");
    if (outcome != "stop" && outcome != "length" && outcome != "cancelled") continue;
    ClientMetric renamed = metric;
    renamed.label = {{"finished_reason", outcome == "cancelled" ? "abort" : outcome}};
    out.push_back(std::move(renamed));
  }
  return out;
}

std::vector<ClientMetric> OfPrefill(const MetricFamily& source, const Families&) {
  std::vector<ClientMetric> out;
  for (const ClientMetric& metric : source.metric) {
    if (LabelOf(metric, "role") != "prefill") continue;
    out.push_back(metric);
    out.back().label.clear();
  }
  return out;
}

template <TtftStage stage>
std::vector<ClientMetric> OneStage(const MetricFamily& stages, const Families&) {
  std::vector<ClientMetric> out;
  for (const ClientMetric& metric : stages.metric) {
    if (LabelOf(metric, "stage") != LabelValue(stage)) continue;
    out.push_back(metric);
    out.back().label.clear();
  }
  return out;
}

struct AliasRule {
  MetricAlias alias;
  Transform transform;
};

constexpr std::string_view kCopy = "the same values";
constexpr std::string_view kShare =
    "used / capacity of the decode pages (of prefill's in a prefill process)";

constexpr std::string_view kOfPrefill = "those of role prefill";

constexpr AliasRule kAliases[] = {
    {{"vllm:time_to_first_token_seconds", "baton_ttft_seconds", kCopy}, Same},
    {{"vllm:time_per_output_token_seconds", "baton_itl_seconds", kCopy}, Same},
    {{"vllm:inter_token_latency_seconds", "baton_itl_seconds", kCopy}, Same},
    {{"vllm:request_time_per_output_token_seconds", "baton_tpot_seconds", kCopy}, Same},
    {{"vllm:e2e_request_latency_seconds", "baton_e2e_seconds", kCopy}, Same},
    {{"vllm:request_queue_time_seconds", "baton_ttft_stage_seconds", "stage queue"},
     OneStage<TtftStage::kQueue>},
    {{"vllm:request_prefill_time_seconds", "baton_ttft_stage_seconds", "stage prefill"},
     OneStage<TtftStage::kPrefill>},
    {{"vllm:request_prompt_tokens", "baton_request_prompt_tokens", kCopy}, Same},
    {{"vllm:request_generation_tokens", "baton_request_output_tokens", kCopy}, Same},
    {{"vllm:num_requests_running", "baton_running_requests", "sum over the roles of this process"},
     SumOfGauges},
    {{"vllm:num_requests_waiting", "baton_router_queue_requests", kCopy}, Same},
    {{"vllm:kv_cache_usage_perc", "baton_kv_pages_used", kShare}, UsedShare},
    {{"vllm:gpu_cache_usage_perc", "baton_kv_pages_used", kShare}, UsedShare},
    {{"vllm:prefix_cache_queries_total", "baton_prefix_cache_lookup_tokens_total", kOfPrefill},
     OfPrefill},
    {{"vllm:prefix_cache_hits_total", "baton_prefix_cache_hit_tokens_total", kOfPrefill},
     OfPrefill},
    {{"vllm:prompt_tokens_total", "baton_prompt_tokens_total", kCopy}, Same},
    {{"vllm:generation_tokens_total", "baton_output_tokens_total", kCopy}, Same},
    {{"vllm:request_success_total", "baton_requests_total",
      "outcomes stop, length and cancelled (as abort) under the label finished_reason"},
     Finished},
    {{"vllm:num_preemptions_total", "baton_preemptions_total", kCopy}, Same},
};

void AppendAliases(const std::string& model_name, std::vector<MetricFamily>& families) {
  Families by_name;
  for (const MetricFamily& family : families) by_name.emplace(family.name, &family);
  std::vector<MetricFamily> aliases;
  for (const AliasRule& rule : kAliases) {
    const auto source = by_name.find(rule.alias.source);
    if (source == by_name.end()) continue;
    MetricFamily family;
    family.name = std::string(rule.alias.name);
    family.help =
        "Alias of " + std::string(rule.alias.source) + ": " + std::string(rule.alias.how) + ".";
    family.type = source->second->type;
    family.metric = rule.transform(*source->second, by_name);
    for (ClientMetric& metric : family.metric) {
      metric.label.push_back({"model_name", model_name});
      metric.label.push_back({"engine", "0"});
    }
    if (!family.metric.empty()) aliases.push_back(std::move(family));
  }
  for (MetricFamily& family : aliases) families.push_back(std::move(family));
}

}  // namespace

// Binds handles to the table's series in one registry. Re-binding the same labels gives the same
// series.
class MetricsBinder {
  using Labels = prometheus::Labels;

  template <typename Builder>
  auto& Family(std::string_view name, const Labels& labels, MetricType type, Builder builder) {
    const MetricSpec& spec = SpecOf(name);
    BATON_CHECK_MSG(spec.type == type, "bound as another type: " + std::string(name));
    const size_t label_count =
        spec.label.empty() ? 0 : 1 + std::count(spec.label.begin(), spec.label.end(), ',');
    BATON_CHECK_MSG(labels.size() == label_count, "bound with other labels: " + std::string(name));
    for (const auto& [label, value] : labels) {
      BATON_CHECK_MSG(
          ("," + std::string(spec.label) + ",").find("," + label + ",") != std::string::npos,
          "bound with a foreign label: " + std::string(name));
    }
    return builder.Name(std::string(name)).Help(std::string(spec.help)).Register(registry_);
  }

 public:
  explicit MetricsBinder(prometheus::Registry& registry) : registry_(registry) {}

  void Bind(CounterHandle& handle, std::string_view name, const Labels& labels = {}) {
    handle.counter_ =
        &Family(name, labels, MetricType::kCounter, prometheus::BuildCounter()).Add(labels);
  }
  void Bind(GaugeHandle& handle, std::string_view name, const Labels& labels = {}) {
    handle.gauge_ = &Family(name, labels, MetricType::kGauge, prometheus::BuildGauge()).Add(labels);
  }
  void Unbind(const GaugeHandle& handle, std::string_view name, const Labels& labels) {
    Family(name, labels, MetricType::kGauge, prometheus::BuildGauge()).Remove(handle.gauge_);
  }
  void Bind(HistogramHandle& handle, std::string_view name, const Labels& labels = {}) {
    const std::span<const double> bounds = SpecOf(name).buckets;
    const prometheus::Histogram::BucketBoundaries buckets(bounds.begin(), bounds.end());
    handle.histogram_ = &Family(name, labels, MetricType::kHistogram, prometheus::BuildHistogram())
                             .Add(labels, buckets);
  }
  template <typename Handle, typename Enum>
  void Bind(PerLabel<Handle, Enum>& handles, std::string_view name) {
    const std::string label(SpecOf(name).label);
    for (size_t i = 0; i < handles.handles_.size(); ++i) {
      Bind(handles.handles_[i], name, {{label, std::string(LabelValue(static_cast<Enum>(i)))}});
    }
  }

  void BindPasses(WorkerMetrics& worker, const std::string& role) {
    Bind(worker.batch_rows, "baton_batch_rows", {{"role", role}});
    Bind(worker.step_seconds, "baton_step_seconds", {{"role", role}});
  }

  void Bind(HandoffSendMetrics& handoff) {
    Bind(handoff.bytes_total, "baton_handoff_sent_bytes_total");
    Bind(handoff.messages_total, "baton_handoff_sent_messages_total");
    Bind(handoff.seconds, "baton_handoff_send_seconds");
    Bind(handoff.failures_total, "baton_handoff_send_failures_total");
  }

  void Bind(WorkerMetrics& worker, const std::string& role) {
    const Labels labels{{"role", role}};
    Bind(worker.running_requests, "baton_running_requests", labels);
    Bind(worker.kv_pages_capacity, "baton_kv_pages_capacity", labels);
    Bind(worker.kv_pages_used, "baton_kv_pages_used", labels);
    BindPasses(worker, role);
    Bind(worker.prefix_cache_pages, "baton_prefix_cache_pages", labels);
    Bind(worker.prefix_cache_lookup_tokens_total, "baton_prefix_cache_lookup_tokens_total", labels);
    Bind(worker.prefix_cache_hit_tokens_total, "baton_prefix_cache_hit_tokens_total", labels);
    Bind(worker.prefix_cache_evicted_pages_total, "baton_prefix_cache_evicted_pages_total", labels);
  }

  void Bind(ExpertMetrics& experts) {
    Bind(experts.balancedness, "baton_experts_balancedness");
    Bind(experts.rank_load_least, "baton_expert_rank_load", {{"bound", "least"}});
    Bind(experts.rank_load_most, "baton_expert_rank_load", {{"bound", "most"}});
    Bind(experts.busiest_expert_share, "baton_expert_busiest_share");
    Bind(experts.uncovered, "baton_experts_uncovered");
    Bind(experts.on_one_rank, "baton_experts_on_one_rank");
    Bind(experts.masked_ranks, "baton_experts_masked_ranks");
    Bind(experts.replicas_fewest, "baton_expert_replicas", {{"bound", "fewest"}});
    Bind(experts.replicas_most, "baton_expert_replicas", {{"bound", "most"}});
    Bind(experts.placement_version, "baton_expert_placement_version");
    Bind(experts.placement_age_seconds, "baton_expert_placement_age_seconds");
    Bind(experts.copies_total, "baton_expert_copies_total");
    Bind(experts.rebalances_total, "baton_expert_rebalances_total");
  }

  void Bind(RouterMetrics& router) {
    Bind(router.ttft_seconds, "baton_ttft_seconds");
    Bind(router.ttft_stage_seconds, "baton_ttft_stage_seconds");
    Bind(router.tpot_seconds, "baton_tpot_seconds");
    Bind(router.itl_seconds, "baton_itl_seconds");
    Bind(router.e2e_seconds, "baton_e2e_seconds");
    Bind(router.request_prompt_tokens, "baton_request_prompt_tokens");
    Bind(router.request_output_tokens, "baton_request_output_tokens");
    Bind(router.requests_total, "baton_requests_total");
    Bind(router.retries_total, "baton_retries_total");
    Bind(router.prompt_tokens_total, "baton_prompt_tokens_total");
    Bind(router.output_tokens_total, "baton_output_tokens_total");
    Bind(router.queue_requests, "baton_router_queue_requests");
    Bind(router.inflight_requests, "baton_router_inflight_requests");
  }

  void Bind(PrefillMetrics& prefill) {
    Bind(prefill.worker, "prefill");
    Bind(prefill.queue_requests, "baton_prefill_queue_requests");
    Bind(prefill.queue_tokens, "baton_prefill_queue_tokens");
    Bind(prefill.tokens_total, "baton_prefill_tokens_total");
    Bind(prefill.handoff);
  }

  void BindFollower(PrefillMetrics& prefill) {
    BindPasses(prefill.worker, "prefill");
    Bind(prefill.handoff);
  }

  void Bind(DecodeMetrics& decode) {
    Bind(decode.worker, "decode");
    Bind(decode.landing_requests, "baton_landing_requests");
    Bind(decode.preemptions_total, "baton_preemptions_total");
    Bind(decode.prefix_cache_generated_tokens_total, "baton_prefix_cache_generated_tokens_total");
    Bind(decode.handoff_received_bytes_total, "baton_handoff_received_bytes_total");
    Bind(decode.handoff_received_messages_total, "baton_handoff_received_messages_total");
    Bind(decode.handoff_seconds, "baton_handoff_seconds");
    Bind(decode.handoff_exposed_seconds, "baton_handoff_exposed_seconds");
    Bind(decode.handoff_failures_total, "baton_handoff_failures_total");
  }

 private:
  prometheus::Registry& registry_;
};

void CounterHandle::Add(double amount) const {
  if (counter_ != nullptr) counter_->Increment(amount);
}

void GaugeHandle::Set(double value) const {
  if (gauge_ != nullptr) gauge_->Set(value);
}

void GaugeHandle::Add(double amount) const {
  if (gauge_ != nullptr) gauge_->Increment(amount);
}

void HistogramHandle::Observe(double value) const {
  if (histogram_ != nullptr) histogram_->Observe(value);
}

std::string_view LabelValue(TtftStage stage) { return NameOf(stage, kTtftStages); }
std::string_view LabelValue(Outcome outcome) { return NameOf(outcome, kOutcomes); }
std::string_view LabelValue(RetryCause cause) { return NameOf(cause, kRetryCauses); }
std::string_view LabelValue(HandoffFailure cause) { return NameOf(cause, kHandoffFailures); }
std::string_view LabelValue(RebalanceOutcome end) { return NameOf(end, kRebalances); }

std::string_view MetricTypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      return "histogram";
  }
  return "";
}

std::span<const MetricAlias> MetricAliases() {
  static const std::vector<MetricAlias> aliases = [] {
    std::vector<MetricAlias> out;
    for (const AliasRule& rule : kAliases) out.push_back(rule.alias);
    return out;
  }();
  return aliases;
}

struct Metrics::State {
  // Families are kept apart by name and merged by prometheus-cpp only when help and labels agree,
  // as here.
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  MetricsOptions options;
  std::once_flag router_bound, prefill_bound, follower_bound, decode_bound, experts_bound;
  RouterMetrics router;
  PrefillMetrics prefill, follower;
  DecodeMetrics decode;
  ExpertMetrics experts;
};

Metrics::Metrics(const MetricsOptions& options) : state_(std::make_unique<State>()) {
  state_->options = options;
  MetricsBinder binder(state_->registry);
  GaugeHandle info;
  binder.Bind(info, "baton_build_info",
              {{"version", options.version}, {"revision", options.revision}});
  info.Set(1);
  binder.Bind(info, "baton_model_info",
              {{"model", options.model_name}, {"kv_format", options.kv_format}});
  info.Set(1);
}

Metrics::~Metrics() = default;

const RouterMetrics& Metrics::router() {
  std::call_once(state_->router_bound,
                 [this] { MetricsBinder(state_->registry).Bind(state_->router); });
  return state_->router;
}

const PrefillMetrics& Metrics::prefill() {
  std::call_once(state_->prefill_bound,
                 [this] { MetricsBinder(state_->registry).Bind(state_->prefill); });
  return state_->prefill;
}

const PrefillMetrics& Metrics::prefill_follower() {
  std::call_once(state_->follower_bound,
                 [this] { MetricsBinder(state_->registry).BindFollower(state_->follower); });
  return state_->follower;
}

const DecodeMetrics& Metrics::decode() {
  std::call_once(state_->decode_bound,
                 [this] { MetricsBinder(state_->registry).Bind(state_->decode); });
  return state_->decode;
}

const ExpertMetrics& Metrics::experts() {
  std::call_once(state_->experts_bound,
                 [this] { MetricsBinder(state_->registry).Bind(state_->experts); });
  return state_->experts;
}

GaugeHandle Metrics::WorkerUp(std::string_view role, std::string_view worker) {
  GaugeHandle handle;
  MetricsBinder(state_->registry)
      .Bind(handle, "baton_worker_up",
            {{"role", std::string(role)}, {"worker", std::string(worker)}});
  return handle;
}

void Metrics::ForgetWorkerUp(std::string_view role, std::string_view worker) {
  MetricsBinder(state_->registry)
      .Unbind(WorkerUp(role, worker), "baton_worker_up",
              {{"role", std::string(role)}, {"worker", std::string(worker)}});
}

std::string Metrics::Render() const {
  std::vector<MetricFamily> families = state_->registry.Collect();
  if (state_->options.vllm_aliases) AppendAliases(state_->options.model_name, families);
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace baton
