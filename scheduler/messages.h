#ifndef BATON_SCHEDULER_MESSAGES_H_
#define BATON_SCHEDULER_MESSAGES_H_

// What router, decode ranks and prefill workers say to each other, as plain values. The services in
// server/ and *_worker/ translate them to and from proto/baton/v1/worker.proto; the simulation
// passes them directly. Instants do not cross processes: deadlines travel as what remains of them,
// timings as durations.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/ids.h"
#include "scheduler/types.h"

namespace baton::scheduler {

// What must agree between workers before any request is paired: exchanged when they connect.
struct WorkerIdentity {
  std::string role;      // "prefill", "decode" or "router"
  std::string instance;  // host:port or in-process name, for messages
  // Drawn when the process starts: tells a restarted worker from its predecessor.
  uint64_t incarnation = 0;
  std::string model_name;
  std::string model_hash;  // of config and checkpoint headers
  std::string kv_format;   // "bf16" or "fp8"
  int32_t page_tokens = 0;
  int32_t layers = 0;
  std::string revision;         // software revision of the binary
  std::string expert_dispatch;  // of decode ranks: "activations" or "fp8", which decides bits
};

// --- router -> decode rank ----------------------------------------------------------------

// Spends one credit. From here the decode rank owns the attempt.
struct StartRequest {
  RequestKey key;
  std::vector<TokenId> prompt;  // at least one token
  // Tokens of earlier attempts that the client already has; replayed in decode form after the
  // landing, never delivered again. Sampling goes on at position prompt.size() + delivered.size().
  std::vector<TokenId> delivered;
  SamplingParams sampling;
  Duration remaining;           // until the request's deadline; > 0
  std::string prefill_address;  // endpoint of the prefill worker to call
  std::string cache_salt;       // requests of other salts share no cached pages with this one
};

struct CancelRequest {
  RequestKey key;
};

// --- decode rank -> router: one message a step --------------------------------------------

// Parts of TTFT, each measured on one clock. The router adds `queue` and lets `decode_wait` be the
// remainder, so that the stages add up to what the client sees.
struct FirstTokenTimings {
  Duration prefill_wait;  // start received by decode -> first chunk begins on prefill, less network
  Duration prefill;       // first chunk begins -> first token sampled
  Duration transfer_exposed;  // decode's wait for the reply, less the two above
};

// New output tokens of one attempt. A token that stops the request (end of sequence, stop id) is in
// no chunk: the RequestEnd says kStop.
struct TokenChunk {
  RequestKey key;
  int32_t first_index = 0;               // index among the output tokens of tokens[0]
  std::vector<SampledToken> tokens;      // empty only when the very first token stopped the request
  bool has_first_token_timings = false;  // set on the attempt's first chunk; then also:
  FirstTokenTimings timings;
  int32_t cached_tokens = 0;       // of the prompt, that prefill did not have to compute
  int32_t decode_form_tokens = 0;  // of the prompt, taken from generated tokens' pages
};

enum class EndKind : uint8_t {
  kFinished,   // reason says how
  kCancelled,  // as asked
  kRefused,    // not taken on (no pages, no landing, draining): try again, does not count as an
               // attempt
  kPreempted,  // pages were needed by an older request: resume it with what was delivered
  kRetryable,  // prefill or hand-off failed: a new attempt may succeed
  kFailed,     // final; status says why
};

// Exactly one per StartRequest; nothing about the key follows it except Released.
struct RequestEnd {
  RequestKey key;
  EndKind kind = EndKind::kFinished;
  FinishReason reason = FinishReason::kNone;
  absl::Status status;        // for kRefused, kRetryable, kFailed
  bool prefill_lost = false;  // kRetryable: the prefill worker itself is unreachable
};

struct DecodeStatus {
  // Totals since the connection began. A router may start a request while it has sent fewer starts
  // than credits_granted; starts it has sent beyond starts_received are not yet in the figures
  // below.
  uint64_t credits_granted = 0;
  uint64_t starts_received = 0;
  int32_t total_pages = 0;
  int32_t free_pages = 0;  // unreserved, cached ones that nobody uses included
  int32_t running = 0;     // sequences decoding
  int32_t landing = 0;     // requests between start and landed
  bool draining = false;
  bool caches_prefixes = false;
  int32_t cached_pages = 0;
  friend bool operator==(const DecodeStatus&, const DecodeStatus&) = default;
};

struct DecodeUpdate {
  std::vector<TokenChunk> chunks;
  std::vector<RequestEnd> ends;
  // Attempts of which both workers have confirmed that no page is held any more (after their end).
  std::vector<RequestKey> released;
  DecodeStatus status;
};

// --- decode rank -> prefill worker --------------------------------------------------------

// Where a hand-off is to write: the pages of the prompt from `first_page` on. What stands before is
// there already. In the hand-off's messages pages count from the landing's first.
struct Landing {
  Epoch epoch;
  std::string transport_address;  // opaque: KvTransport::address() of the decode rank
  int32_t first_page = 0;
  std::vector<PageId> pages;  // in prompt order: ceil(prompt tokens / page_tokens) - first_page
};

struct PrefillCall {
  RequestKey key;
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  bool sample_first_token = true;  // false when the request resumes with delivered tokens
  Duration remaining;
  Landing landing;
  std::string cache_salt;
};

struct PrefillCancel {
  RequestKey key;
};

// --- prefill worker -> decode rank --------------------------------------------------------

// Exactly one per PrefillCall, after every page was posted and the worker has freed its own pages
// (or, on failure, freed them without posting the rest).
struct PrefillReply {
  RequestKey key;
  // RESOURCE_EXHAUSTED: no slot or pages, or draining; CANCELLED; DEADLINE_EXCEEDED; UNAVAILABLE:
  // the hand-off failed; INVALID_ARGUMENT: the call can never work; INTERNAL: the pass failed.
  absl::Status status;
  bool has_first_token = false;
  SampledToken first_token;
  uint32_t messages_posted = 0;  // decode checks its landing against this
  uint64_t bytes_posted = 0;
  Duration wait;              // call received -> first chunk begins
  Duration compute;           // first chunk begins -> last chunk sampled
  int32_t cached_tokens = 0;  // of the prompt, that were not computed for this call
};

// --- prefill worker -> router -------------------------------------------------------------

struct PrefillStatus {
  int32_t total_pages = 0;
  int32_t free_pages = 0;  // cached ones that nobody uses included
  int32_t slots = 0;       // requests it takes at once
  int32_t running = 0;
  int64_t queued_tokens = 0;  // prompt tokens not yet computed
  bool draining = false;
  bool caches_prefixes = false;
  int32_t cached_pages = 0;
  friend bool operator==(const PrefillStatus&, const PrefillStatus&) = default;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_MESSAGES_H_
