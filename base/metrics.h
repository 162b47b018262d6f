#ifndef BATON_BASE_METRICS_H_
#define BATON_BASE_METRICS_H_

// What a process tells Prometheus. Every series is declared once, in metrics_table.cc: name,
// type, help, labels and buckets. Code records through the typed handles below, which are bound
// once and cost no look-up.
//
// One Metrics object per process, created in main and injected; handles stay valid as long as it
// lives. All methods of Metrics and of the handles may be called from any thread. Nothing here
// fails: a handle that does not match the table is a bug and aborts when Metrics is built.
//
// A process shows only the groups that it asked for (router(), prefill(), decode()), so a prefill
// process has no empty router series. A default-constructed handle records nothing: for code that
// runs without Metrics.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace baton {

// --- Handles: pointers, passed by value.

class CounterHandle {
 public:
  CounterHandle() = default;
  void Add(double amount = 1) const;  // amount >= 0

 private:
  friend class MetricsBinder;
  prometheus::Counter* counter_ = nullptr;
};

class GaugeHandle {
 public:
  GaugeHandle() = default;
  void Set(double value) const;
  void Add(double amount) const;

 private:
  friend class MetricsBinder;
  prometheus::Gauge* gauge_ = nullptr;
};

class HistogramHandle {
 public:
  HistogramHandle() = default;
  void Observe(double value) const;  // in the unit that ends the series' name

 private:
  friend class MetricsBinder;
  prometheus::Histogram* histogram_ = nullptr;
};

// --- Label values. `kCount` ends each enum; LabelValue gives the text.

// Parts of TTFT in the order of their happening; they add up to it.
enum class TtftStage : uint8_t {
  kQueue,            // arrival at the router -> start sent to a decode rank
  kPrefillWait,      // -> first chunk begins on the prefill worker
  kPrefill,          // -> first token sampled
  kTransferExposed,  // what is left of decode's wait: transfer that compute did not hide
  kDecodeWait,       // the rest, until the first token is written to the client
  kCount,
};

// How a request ended: a finish reason, or the status code that the client got.
enum class Outcome : uint8_t {
  kStop,
  kLength,
  kCancelled,
  kInvalidArgument,
  kNotFound,
  kResourceExhausted,
  kDeadlineExceeded,
  kUnavailable,
  kInternal,  // and every code not named above
  kCount,
};

enum class RetryCause : uint8_t {
  kRefused,     // the rank took nothing on
  kPreempted,   // its pages went to an older request
  kHandoff,     // prefill or hand-off failed
  kWorkerLost,  // the prefill worker or decode rank is gone
  kCount,
};

enum class HandoffFailure : uint8_t {
  kEpoch,      // written for an older landing
  kChecksum,   // payload is not what was sent
  kTimeout,    // not complete in time
  kPeerLost,   // the other side is gone
  kDuplicate,  // pages that had arrived already
  kMalformed,  // a header that makes no sense
  kCount,
};

// How a change of the experts' placement ended.
enum class RebalanceOutcome : uint8_t {
  kInstalled,
  kNotWorth,    // the placement in use is as good, or nearly
  kRolledBack,  // a rank did not answer or could not, or the ranks have changed
  kRefused,     // asked for at a bad time
  kCount,
};

std::string_view LabelValue(TtftStage stage);
std::string_view LabelValue(Outcome outcome);
std::string_view LabelValue(RetryCause cause);
std::string_view LabelValue(HandoffFailure cause);
std::string_view LabelValue(RebalanceOutcome end);

// One handle for each value of a label.
template <typename Handle, typename Enum>
class PerLabel {
 public:
  const Handle& operator[](Enum value) const { return handles_[static_cast<size_t>(value)]; }

 private:
  friend class MetricsBinder;
  std::array<Handle, static_cast<size_t>(Enum::kCount)> handles_;
};

// --- The series by role. Help texts are in metrics_table.cc and docs/metrics.md.

struct RouterMetrics {
  HistogramHandle ttft_seconds;
  PerLabel<HistogramHandle, TtftStage> ttft_stage_seconds;
  HistogramHandle tpot_seconds;
  HistogramHandle itl_seconds;
  HistogramHandle e2e_seconds;
  HistogramHandle request_prompt_tokens;
  HistogramHandle request_output_tokens;
  PerLabel<CounterHandle, Outcome> requests_total;
  PerLabel<CounterHandle, RetryCause> retries_total;
  CounterHandle prompt_tokens_total;
  CounterHandle output_tokens_total;
  GaugeHandle queue_requests;
  GaugeHandle inflight_requests;
};

// What prefill and decode workers both show, told apart by the label `role`.
struct WorkerMetrics {
  GaugeHandle running_requests;
  GaugeHandle kv_pages_capacity;
  GaugeHandle kv_pages_used;
  HistogramHandle batch_rows;
  HistogramHandle step_seconds;
  GaugeHandle prefix_cache_pages;
  CounterHandle prefix_cache_lookup_tokens_total;
  CounterHandle prefix_cache_hit_tokens_total;
  CounterHandle prefix_cache_evicted_pages_total;
};

// What a prefill rank sends: its own share of each hand-off.
struct HandoffSendMetrics {
  CounterHandle bytes_total;
  CounterHandle messages_total;
  HistogramHandle seconds;
  CounterHandle failures_total;
};

struct PrefillMetrics {
  WorkerMetrics worker;  // role="prefill"
  GaugeHandle queue_requests;
  GaugeHandle queue_tokens;
  CounterHandle tokens_total;
  HandoffSendMetrics handoff;
};

struct DecodeMetrics {
  WorkerMetrics worker;  // role="decode"
  GaugeHandle landing_requests;
  CounterHandle preemptions_total;
  CounterHandle prefix_cache_generated_tokens_total;
  CounterHandle handoff_received_bytes_total;
  CounterHandle handoff_received_messages_total;
  HistogramHandle handoff_seconds;
  HistogramHandle handoff_exposed_seconds;
  PerLabel<CounterHandle, HandoffFailure> handoff_failures_total;
};

// The experts of a decode group of several ranks. Gauges are equal on all of its ranks.
struct ExpertMetrics {
  GaugeHandle balancedness;
  GaugeHandle rank_load_least;
  GaugeHandle rank_load_most;
  GaugeHandle busiest_expert_share;
  GaugeHandle uncovered;
  GaugeHandle on_one_rank;
  GaugeHandle masked_ranks;
  GaugeHandle replicas_fewest;
  GaugeHandle replicas_most;
  GaugeHandle placement_version;
  GaugeHandle placement_age_seconds;
  CounterHandle copies_total;  // this and the next: of groups that a rank here leads
  PerLabel<CounterHandle, RebalanceOutcome> rebalances_total;
};

// --- The table, for documentation and tests.

enum class MetricType : uint8_t { kCounter, kGauge, kHistogram };
std::string_view MetricTypeName(MetricType type);  // as in the text format

struct MetricSpec {
  std::string_view name;
  MetricType type;
  std::string_view help;
  std::string_view label;  // its only label's name, or a comma-separated list; empty = none
  std::span<const double> buckets;  // histograms only: upper bounds, ascending
};
std::span<const MetricSpec> MetricSpecs();

// A second name for a native series, which dashboards and gateways written for vLLM read.
struct MetricAlias {
  std::string_view name;    // vllm:...
  std::string_view source;  // the native series it is made from
  std::string_view how;     // the rule, in words
};
std::span<const MetricAlias> MetricAliases();

// --- The object.

struct MetricsOptions {
  std::string version;       // of the software: labels of baton_build_info
  std::string revision;      // source revision
  std::string model_name;    // label of baton_model_info and `model_name` of the aliases
  std::string kv_format;     // label of baton_model_info
  bool vllm_aliases = true;  // also render the vllm:* names
};

class Metrics {
 public:
  // What the HTTP response that carries Render() is to say.
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  explicit Metrics(const MetricsOptions& options);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Each group's series appear, at zero, from the first call on.
  const RouterMetrics& router();
  const PrefillMetrics& prefill();
  // Of a rank that follows the leader of its group, in a process of its own: its passes and its
  // share of hand-offs. What the leader shows for all is not here; its handles record nothing.
  const PrefillMetrics& prefill_follower();
  const DecodeMetrics& decode();
  const ExpertMetrics& experts();

  // Whether the router is connected to a worker (1) or not (0): role is "prefill" or "decode",
  // worker its address. The handle is bound here: keep it.
  GaugeHandle WorkerUp(std::string_view role, std::string_view worker);
  // Takes the worker's series away. Its handles may not be used again.
  void ForgetWorkerUp(std::string_view role, std::string_view worker);

  // The current values in Prometheus' text format, aliases included when they are on.
  std::string Render() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace baton

#endif  // BATON_BASE_METRICS_H_
