#include "server/completion_state.h"

#include <utility>

namespace baton::server {
namespace {

double Ms(Duration duration) { return static_cast<double>(duration.nanos()) * 1e-6; }

void AddLogprobs(const scheduler::SampledToken& token, v1::PositionLogprobs* out) {
  out->mutable_chosen()->set_token_id(token.token);
  out->mutable_chosen()->set_logprob(token.logprob);
  for (const scheduler::TokenLogprob& top : token.top_logprobs) {
    v1::TokenLogprob* added = out->add_top();
    added->set_token_id(top.token);
    added->set_logprob(top.logprob);
  }
}

}  // namespace

CompletionState::CompletionState(const model::Tokenizer& tokenizer, const ModelDescription& model,
                                 ParsedRequest request)
    : request_(std::move(request)),
      model_name_(model.name),
      text_(tokenizer, request_.stop_strings) {}

bool CompletionState::Add(const scheduler::EmitTokens& tokens, v1::Chunk* chunk) {
  if (text_.stopped()) return false;
  for (const scheduler::SampledToken& token : tokens.tokens) {
    chunk->mutable_text()->append(text_.Feed(token.token));
    chunk->add_token_ids(token.token);
    if (request_.sampling.top_logprobs >= 0) AddLogprobs(token, chunk->add_logprobs());
    ++output_tokens_;
    if (text_.stopped()) return true;
  }
  return false;
}

absl::Status CompletionState::Finish(const scheduler::RequestResult& result, v1::Chunk* chunk,
                                     v1::Finished* finished) {
  if (!result.status.ok() && !text_.stopped()) return result.status;
  chunk->mutable_text()->append(text_.Flush());
  const bool ended_by_string = text_.stopped();
  const bool stop = ended_by_string || result.reason == scheduler::FinishReason::kStop;
  finished->set_reason(stop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  if (ended_by_string) finished->set_stop_string(text_.stop_string());
  v1::Usage* usage = finished->mutable_usage();
  usage->set_prompt_tokens(result.prompt_tokens);
  usage->set_completion_tokens(output_tokens_);
  usage->set_total_tokens(result.prompt_tokens + output_tokens_);
  v1::PromptTokensDetails* details = usage->mutable_prompt_tokens_details();
  details->set_cached_tokens(result.cached_tokens);
  details->set_decode_form_tokens(result.decode_form_tokens);
  v1::Timings* timings = finished->mutable_timings();
  timings->set_queue_ms(Ms(result.stages.queue));
  timings->set_prefill_wait_ms(Ms(result.stages.prefill_wait));
  timings->set_prefill_ms(Ms(result.stages.prefill));
  timings->set_transfer_exposed_ms(Ms(result.stages.transfer_exposed));
  timings->set_decode_wait_ms(Ms(result.stages.decode_wait));
  timings->set_first_token_ms(Ms(result.ttft));
  timings->set_total_ms(Ms(result.total));
  finished->set_seed(request_.sampling.seed);
  finished->set_model(model_name_);
  return absl::OkStatus();
}

}  // namespace baton::server
