#ifndef BATON_MODEL_GENERATE_H_
#define BATON_MODEL_GENERATE_H_

// Generates from one prompt on one Runner, without scheduler, hand-off or server: prefill in
// chunks, then one decode pass for each token. `baton generate` is this; disaggregated serving must
// yield the same tokens, so tests use it as their oracle. Runs on the calling thread.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"
#include "model/runner.h"
#include "scheduler/types.h"

namespace baton::model {

struct GenerateOptions {
  scheduler::SamplingParams sampling;
  std::vector<TokenId>
      eos_token_ids;  // GenerationDefaults::eos_token_ids; not looked at with sampling.ignore_eos
  int32_t chunk_tokens =
      512;  // prompt tokens of one prefill pass; >= 1, at most the runner's max_batch_rows
};

struct GenerateResult {
  std::vector<TokenId> tokens;  // the end or stop token that finished the request is the last one
  scheduler::FinishReason finish = scheduler::FinishReason::kNone;
  Duration first_token;  // from the call to the first token
  Duration decode;       // from the first token to the last
};

// Called for each token as it comes; false ends the generation with kCancelled.
using TokenCallback = std::function<bool(const scheduler::SampledToken&)>;

// Uses the runner's pages 0, 1, ... ; nothing else may run on it meanwhile. INVALID_ARGUMENT for an
// empty prompt, one that leaves no room for a token (max_positions, or pages * page_tokens), or
// what Runner::Run refuses. When the room ends before max_tokens, the result ends with kLength.
absl::StatusOr<GenerateResult> Generate(Runner& runner, Clock& clock,
                                        std::span<const TokenId> prompt,
                                        const GenerateOptions& options,
                                        const TokenCallback& on_token);

}  // namespace baton::model

#endif  // BATON_MODEL_GENERATE_H_
