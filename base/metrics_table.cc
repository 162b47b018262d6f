// The table of all series (metrics.h).

#include "base/metrics.h"

namespace baton {
namespace {

// --- Buckets, chosen so that a quantile read off them is right to about 20% where it matters.

constexpr double kRequestSeconds[] = {0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1,
                                      0.15,  0.2,   0.25, 0.3,  0.4,  0.5,  0.75, 1,    1.5,
                                      2,     3,     5,    7.5,  10,   20,   40,   80,   160};
constexpr double kLongSeconds[] = {0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1,  1.5, 2,   3,
                                   5,    7.5, 10,  15,  20,  30,   60, 120, 240, 480};
constexpr double kTokenSeconds[] = {0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075,
                                    0.01,   0.015, 0.02,   0.025, 0.03,  0.04,  0.05,  0.075,
                                    0.1,    0.15,  0.2,    0.3,   0.5,   1,     2.5};
constexpr double kStepSeconds[] = {0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002,
                                   0.005,   0.01,   0.015,  0.02,   0.03,  0.05,
                                   0.1,     0.2,    0.5,    1,      2,     5};
constexpr double kRows[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
constexpr double kTokens[] = {1,   2,    4,    8,    16,   32,    64,    128,   256,
                              512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};

// --- The table. Adding a series: a row here, a member in metrics.h, its binding below, a row in
// docs/metrics.md.

constexpr MetricType kC = MetricType::kCounter;
constexpr MetricType kG = MetricType::kGauge;
constexpr MetricType kH = MetricType::kHistogram;

constexpr MetricSpec kSpecs[] = {
    // Process
    {"baton_build_info", kG, "Always 1; the labels say which software runs.", "version,revision"},
    {"baton_model_info", kG, "Always 1; the labels say which model is served.", "model,kv_format"},
    {"baton_worker_up", kG, "1 while the router is connected to the worker, else 0.",
     "role,worker"},
    // Router: what clients see
    {"baton_ttft_seconds", kH, "Arrival at the router to the first token written to the client.",
     "", kRequestSeconds},
    {"baton_ttft_stage_seconds", kH,
     "Parts of the time to first token, one sample each per request; they add up to it.", "stage",
     kRequestSeconds},
    {"baton_tpot_seconds", kH,
     "Time per output token after the first, one sample per request: (end - first token) / (tokens "
     "- 1).",
     "", kTokenSeconds},
    {"baton_itl_seconds", kH, "Each single gap between two tokens of a request.", "",
     kTokenSeconds},
    {"baton_e2e_seconds", kH, "Arrival at the router to the end of the request.", "", kLongSeconds},
    {"baton_request_prompt_tokens", kH, "Prompt length of accepted requests.", "", kTokens},
    {"baton_request_output_tokens", kH, "Output length of requests that finished.", "", kTokens},
    {"baton_requests_total", kC, "Requests that ended, by finish reason or status code.",
     "outcome"},
    {"baton_retries_total", kC, "Attempts started over on some worker, by cause.", "cause"},
    {"baton_prompt_tokens_total", kC, "Prompt tokens of accepted requests.", ""},
    {"baton_output_tokens_total", kC, "Output tokens delivered to clients.", ""},
    {"baton_router_queue_requests", kG, "Requests that wait in the router for a worker.", ""},
    {"baton_router_inflight_requests", kG, "Requests dispatched to workers and not ended.", ""},
    // Workers
    {"baton_running_requests", kG, "Requests in a worker's running batch.", "role"},
    {"baton_kv_pages_capacity", kG, "KV pages that a worker has.", "role"},
    {"baton_kv_pages_used", kG, "KV pages that requests hold; cached ones that none uses are free.",
     "role"},
    {"baton_batch_rows", kH, "Token rows of one forward pass.", "role", kRows},
    {"baton_step_seconds", kH, "Duration of one worker step that ran a forward pass.", "role",
     kStepSeconds},
    {"baton_prefix_cache_pages", kG, "KV pages in the prefix cache, whether a request uses them.",
     "role"},
    {"baton_prefix_cache_lookup_tokens_total", kC, "Prompt tokens that were looked up.", "role"},
    {"baton_prefix_cache_hit_tokens_total", kC,
     "Prompt tokens found: not computed (prefill), not transferred (decode).", "role"},
    {"baton_prefix_cache_evicted_pages_total", kC, "Cached pages given up for other requests.",
     "role"},
    // Prefill
    {"baton_prefill_queue_requests", kG,
     "Requests on a prefill worker whose first chunk has not begun.", ""},
    {"baton_prefill_queue_tokens", kG,
     "Prompt tokens on a prefill worker that are not yet computed.", ""},
    {"baton_prefill_tokens_total", kC, "Prompt tokens computed, repeated work of retries included.",
     ""},
    {"baton_handoff_sent_bytes_total", kC, "Payload bytes posted to decode ranks.", ""},
    {"baton_handoff_sent_messages_total", kC, "Hand-off messages posted to decode ranks.", ""},
    {"baton_handoff_send_seconds", kH,
     "A rank's share of a request's hand-off: its first message posted to its last one.", "",
     kStepSeconds},
    {"baton_handoff_send_failures_total", kC,
     "Shares of hand-offs that a rank gave up: the decode rank is gone, or cannot be reached.", ""},
    // Decode
    {"baton_landing_requests", kG,
     "Requests that hold landing pages and whose hand-off is not complete.", ""},
    {"baton_preemptions_total", kC,
     "Running requests stopped because an older one needed their pages.", ""},
    {"baton_prefix_cache_generated_tokens_total", kC,
     "Prompt tokens found in pages of generated tokens (decode.reuse_generated).", ""},
    {"baton_handoff_received_bytes_total", kC, "Payload bytes accepted into landing pages.", ""},
    {"baton_handoff_received_messages_total", kC, "Hand-off messages accepted into landing pages.",
     ""},
    {"baton_handoff_seconds", kH, "First hand-off message of a request to its landing verified.",
     "", kStepSeconds},
    {"baton_handoff_exposed_seconds", kH,
     "The part of the hand-off that compute did not hide: first token sampled to landing verified.",
     "", kStepSeconds},
    {"baton_handoff_failures_total", kC, "Hand-off messages or hand-offs refused, by cause.",
     "cause"},
    // Experts
    {"baton_experts_balancedness", kG, "Mean over maximum of ranks' expert load; 1 is even.", ""},
    {"baton_expert_rank_load", kG,
     "Expert load of the least and the most loaded live rank, over the mean of ranks.", "bound"},
    {"baton_expert_busiest_share", kG,
     "Share of a layer's choices that its busiest expert gets, in the layer where it is largest.",
     ""},
    {"baton_experts_uncovered", kG, "(Layer, expert) pairs that no live rank has.", ""},
    {"baton_experts_on_one_rank", kG, "(Layer, expert) pairs that one live rank alone has.", ""},
    {"baton_experts_masked_ranks", kG, "Ranks whose experts get no tokens.", ""},
    {"baton_expert_replicas", kG, "Fewest and most live replicas of any expert.", "bound"},
    {"baton_expert_placement_version", kG, "Version of the placement in use.", ""},
    {"baton_expert_placement_age_seconds", kG, "How long it has been in use.", ""},
    {"baton_expert_copies_total", kC, "Copies that new placements took.", ""},
    {"baton_expert_rebalances_total", kC, "Rebalances, by how they ended.", "outcome"},
};

}  // namespace

std::span<const MetricSpec> MetricSpecs() { return kSpecs; }

}  // namespace baton
