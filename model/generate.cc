#include "model/generate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using scheduler::FinishReason;
using scheduler::Form;

// One sequence that owns the runner's first pages.
class SingleSequence {
 public:
  SingleSequence(Runner& runner, std::span<const TokenId> prompt,
                 const scheduler::SamplingParams& sampling)
      : runner_(runner),
        sampling_(sampling),
        prompt_tokens_(static_cast<int32_t>(prompt.size())),
        tokens_(prompt.begin(), prompt.end()) {
    const RunnerInfo& info = runner.info();
    const int32_t pages = (info.max_positions + info.page_tokens - 1) / info.page_tokens;
    for (int32_t i = 0; i < std::min(pages, info.total_pages); ++i) {
      pages_.push_back(PageId(static_cast<uint32_t>(i)));
    }
  }

  // Runs rows [begin, end) of the tokens so far; with `sample`, appends the token that follows.
  absl::Status Run(Form form, int32_t begin, int32_t end, bool sample) {
    scheduler::BatchPlan plan;
    plan.step = step_++;
    plan.form = form;
    plan.total_rows = end - begin;
    plan.slices.push_back({.sequence = tokens_,
                           .prompt_tokens = prompt_tokens_,
                           .first_position = begin,
                           .row_count = end - begin,
                           .pages = pages_,
                           .sample = sample,
                           .sampling = &sampling_});
    BATON_RETURN_IF_ERROR(runner_.Run(plan, nullptr, &output_));
    if (!output_.failures.empty()) return output_.failures[0].status;
    if (sample) tokens_.push_back(output_.tokens.at(0).token);
    return absl::OkStatus();
  }

  int32_t length() const { return static_cast<int32_t>(tokens_.size()); }
  const scheduler::SampledToken& last() const { return output_.tokens.at(0); }

 private:
  Runner& runner_;
  const scheduler::SamplingParams& sampling_;
  const int32_t prompt_tokens_;
  std::vector<TokenId> tokens_;
  std::vector<PageId> pages_;
  scheduler::StepOutput output_;
  uint64_t step_ = 0;
};

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

FinishReason FinishAfter(TokenId token, int32_t generated, int32_t room,
                         const GenerateOptions& options) {
  const scheduler::SamplingParams& sampling = options.sampling;
  if (Contains(sampling.stop_token_ids, token)) return FinishReason::kStop;
  if (!sampling.ignore_eos && Contains(options.eos_token_ids, token)) return FinishReason::kStop;
  return generated >= std::min(sampling.max_tokens, room) ? FinishReason::kLength
                                                          : FinishReason::kNone;
}

}  // namespace

absl::StatusOr<GenerateResult> Generate(Runner& runner, Clock& clock,
                                        std::span<const TokenId> prompt,
                                        const GenerateOptions& options,
                                        const TokenCallback& on_token) {
  const RunnerInfo& info = runner.info();
  if (prompt.empty())
    return absl::InvalidArgumentError("the prompt is empty; give at least one token");
  if (prompt.size() >= static_cast<size_t>(info.max_positions)) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt.size(), " tokens; ",
                                                   info.max_positions,
                                                   " positions leave no room for another"));
  }
  if (options.chunk_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_tokens is ", options.chunk_tokens, ", expected at least 1"));
  }
  const Tick start = clock.Now();
  SingleSequence sequence(runner, prompt, options.sampling);
  const int32_t prompt_tokens = sequence.length();
  for (int32_t begin = 0; begin < prompt_tokens; begin += options.chunk_tokens) {
    const int32_t end = std::min(begin + options.chunk_tokens, prompt_tokens);
    BATON_RETURN_IF_ERROR(sequence.Run(Form::kPrefill, begin, end, end == prompt_tokens));
  }
  GenerateResult result;
  Tick now = clock.Now();
  const Tick first = now;
  result.first_token = first - start;
  const int32_t room = info.max_positions - prompt_tokens;
  while (true) {  // ends with kLength at the latest
    const scheduler::SampledToken& token = sequence.last();
    result.tokens.push_back(token.token);
    result.finish =
        FinishAfter(token.token, static_cast<int32_t>(result.tokens.size()), room, options);
    const bool wanted = on_token == nullptr || on_token(token);
    if (!wanted && result.finish == FinishReason::kNone) result.finish = FinishReason::kCancelled;
    if (result.finish != FinishReason::kNone) break;
    BATON_RETURN_IF_ERROR(
        sequence.Run(Form::kDecode, sequence.length() - 1, sequence.length(), /*sample=*/true));
    now = clock.Now();
  }
  result.decode = now - first;
  return result;
}

}  // namespace baton::model
