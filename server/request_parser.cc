#include "server/request_parser.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "proto/baton/v1/completion.pb.h"

namespace baton::server {
namespace {

// Collects problems, so that a client learns of all of them in one answer.
class Problems {
 public:
  void Add(std::string_view problem) {
    if (!text_.empty()) text_ += "; ";
    text_ += problem;
  }
  // `range` reads like "[0, 1)".
  template <typename T>
  void Require(bool ok, const char* field, const T& value, const std::string& range) {
    if (!ok) Add(absl::StrCat(field, " is ", value, ", must be in ", range));
  }
  absl::Status status() const {
    return text_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(text_);
  }

 private:
  std::string text_;
};

std::string UpTo(int64_t low, int64_t high) { return absl::StrCat("[", low, ", ", high, "]"); }

void ParseSampling(const v1::SamplingOptions& options, const ModelDescription& model,
                   scheduler::SamplingParams* out, Problems* problems) {
  const float temperature = options.has_temperature() ? options.temperature() : model.temperature;
  const float top_p = options.has_top_p() ? options.top_p() : model.top_p;
  out->temperature = temperature;
  out->top_k = options.has_top_k() ? options.top_k() : model.top_k;
  out->top_p = top_p;
  out->min_p = options.min_p();
  out->repetition_penalty = options.has_repetition_penalty() ? options.repetition_penalty() : 1.0f;
  out->presence_penalty = options.presence_penalty();
  out->frequency_penalty = options.frequency_penalty();
  out->ignore_eos = options.ignore_eos();
  // NaN fails every comparison, so it is refused too.
  problems->Require(temperature >= 0 && temperature <= 100, "sampling.temperature", temperature,
                    "[0, 100]");
  problems->Require(out->top_k >= 0 && out->top_k <= model.vocab_size, "sampling.top_k", out->top_k,
                    UpTo(0, model.vocab_size));
  problems->Require(top_p > 0 && top_p <= 1, "sampling.top_p", top_p, "(0, 1]");
  problems->Require(out->min_p >= 0 && out->min_p < 1, "sampling.min_p", out->min_p, "[0, 1)");
  problems->Require(out->repetition_penalty > 0 && out->repetition_penalty <= 10,
                    "sampling.repetition_penalty", out->repetition_penalty, "(0, 10]");
  problems->Require(std::abs(out->presence_penalty) <= 2, "sampling.presence_penalty",
                    out->presence_penalty, "[-2, 2]");
  problems->Require(std::abs(out->frequency_penalty) <= 2, "sampling.frequency_penalty",
                    out->frequency_penalty, "[-2, 2]");
}

// After the prompt is known: how many output tokens there may be.
void ParseLengths(const v1::SamplingOptions& options, const ModelDescription& model,
                  const RequestLimits& limits, int64_t prompt_tokens,
                  scheduler::SamplingParams* out, Problems* problems) {
  const int64_t room = model.context_tokens - prompt_tokens;
  if (room < 1) {
    problems->Add(absl::StrCat("the prompt has ", prompt_tokens, " tokens, must be in ",
                               UpTo(1, model.context_tokens - 1), " (the model's context is ",
                               model.context_tokens, " tokens, prompt and output together)"));
    return;
  }
  problems->Require(limits.max_prompt_tokens == 0 || prompt_tokens <= limits.max_prompt_tokens,
                    "the number of prompt tokens", prompt_tokens,
                    UpTo(1, limits.max_prompt_tokens));
  out->max_tokens = options.has_max_tokens()
                        ? options.max_tokens()
                        : static_cast<int32_t>(std::min<int64_t>(limits.default_max_tokens, room));
  out->min_tokens = options.min_tokens();
  problems->Require(out->max_tokens >= 1 && out->max_tokens <= room, "sampling.max_tokens",
                    out->max_tokens,
                    absl::StrCat(UpTo(1, room), " (what the context leaves after the prompt)"));
  problems->Require(out->min_tokens >= 0 && out->min_tokens <= std::max(out->max_tokens, 0),
                    "sampling.min_tokens", out->min_tokens,
                    absl::StrCat("[0, max_tokens = ", out->max_tokens, "]"));
}

void ParseStops(const v1::GenerateRequest& request, const ModelDescription& model,
                const RequestLimits& limits, ParsedRequest* out, Problems* problems) {
  problems->Require(request.stop_size() <= limits.max_stop_strings, "the number of stop strings",
                    request.stop_size(), UpTo(0, limits.max_stop_strings));
  problems->Require(request.stop_token_ids_size() <= limits.max_stop_token_ids,
                    "the number of stop_token_ids", request.stop_token_ids_size(),
                    UpTo(0, limits.max_stop_token_ids));
  if (request.stop_size() > limits.max_stop_strings ||
      request.stop_token_ids_size() > limits.max_stop_token_ids) {
    return;  // do not list thousands
  }
  for (int i = 0; i < request.stop_size(); ++i) {
    const size_t bytes = request.stop(i).size();
    problems->Require(bytes >= 1 && bytes <= static_cast<size_t>(limits.max_stop_bytes),
                      absl::StrCat("the length of stop[", i, "]").c_str(), bytes,
                      absl::StrCat(UpTo(1, limits.max_stop_bytes), " bytes"));
    out->stop_strings.push_back(request.stop(i));
  }
  for (int i = 0; i < request.stop_token_ids_size(); ++i) {
    const int32_t id = request.stop_token_ids(i);
    problems->Require(id >= 0 && id < model.vocab_size,
                      absl::StrCat("stop_token_ids[", i, "]").c_str(), id,
                      UpTo(0, model.vocab_size - 1));
    out->sampling.stop_token_ids.push_back(id);
  }
}

absl::StatusOr<std::vector<TokenId>> ParseTokenIds(const v1::TokenIds& ids,
                                                   const ModelDescription& model) {
  for (int i = 0; i < ids.ids_size(); ++i) {
    const int32_t id = ids.ids(i);
    if (id >= 0 && id < model.vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat("token_ids.ids[", i, "] is ", id,
                                                   ", must be in ", UpTo(0, model.vocab_size - 1)));
  }
  return std::vector<TokenId>(ids.ids().begin(), ids.ids().end());
}

absl::StatusOr<std::vector<TokenId>> ParsePrompt(const v1::GenerateRequest& request,
                                                 const ModelDescription& model,
                                                 const model::Tokenizer& tokenizer,
                                                 const RequestLimits& limits) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return tokenizer.Encode(request.text());
    case v1::GenerateRequest::kTokenIds:
      return ParseTokenIds(request.token_ids(), model);
    case v1::GenerateRequest::kChat:
      return TokenizeChat(request.chat(), tokenizer, limits);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt is not set, must be text, token_ids or chat");
}

}  // namespace

absl::Status CheckModelName(const std::string& name, const ModelDescription& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model \"", name.substr(0, 256),
                                          "\" is not served here; \"", model.name,
                                          "\" is (leave the field empty to take it)"));
}

absl::StatusOr<std::vector<TokenId>> TokenizeChat(const v1::ChatMessages& chat,
                                                  const model::Tokenizer& tokenizer,
                                                  const RequestLimits& limits) {
  Problems problems;
  const int count = chat.messages_size();
  problems.Require(count >= 1 && count <= limits.max_chat_messages, "the number of chat.messages",
                   count, UpTo(1, limits.max_chat_messages));
  BATON_RETURN_IF_ERROR(problems.status());
  std::vector<model::ChatMessage> messages;
  for (int i = 0; i < count; ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      problems.Add(absl::StrCat("chat.messages[", i, "].role is \"", message.role().substr(0, 64),
                                "\", must be \"system\", \"user\" or \"assistant\""));
    }
    messages.push_back({message.role(), message.content()});
  }
  BATON_RETURN_IF_ERROR(problems.status());
  // Whatever the template says about the messages is about the client's input.
  absl::StatusOr<std::string> text = tokenizer.RenderChat(messages, model::ChatOptions());
  if (!text.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat cannot be rendered: ", text.status().message()));
  }
  return tokenizer.Encode(*text, /*add_special_tokens=*/false);
}

absl::StatusOr<ParsedRequest> ParseGenerateRequest(const v1::GenerateRequest& request,
                                                   const ModelDescription& model,
                                                   const model::Tokenizer& tokenizer,
                                                   const RequestLimits& limits,
                                                   uint64_t fresh_seed) {
  BATON_RETURN_IF_ERROR(CheckModelName(request.model(), model));
  ParsedRequest parsed;
  Problems problems;
  problems.Require(request.request_id().size() <= static_cast<size_t>(limits.max_request_id_bytes),
                   "the length of request_id", request.request_id().size(),
                   absl::StrCat(UpTo(0, limits.max_request_id_bytes), " bytes"));
  parsed.client_id = request.request_id();
  problems.Require(request.cache_salt().size() <= static_cast<size_t>(limits.max_cache_salt_bytes),
                   "the length of cache_salt", request.cache_salt().size(),
                   absl::StrCat(UpTo(0, limits.max_cache_salt_bytes), " bytes"));
  parsed.cache_salt = request.cache_salt();
  ParseSampling(request.sampling(), model, &parsed.sampling, &problems);
  parsed.sampling.seed = request.sampling().has_seed() ? request.sampling().seed() : fresh_seed;
  ParseStops(request, model, limits, &parsed, &problems);
  if (request.has_top_logprobs()) {
    problems.Require(
        request.top_logprobs() >= 0 && request.top_logprobs() <= limits.max_top_logprobs,
        "top_logprobs", request.top_logprobs(), UpTo(0, limits.max_top_logprobs));
    parsed.sampling.top_logprobs = request.top_logprobs();
  }
  absl::StatusOr<std::vector<TokenId>> prompt = ParsePrompt(request, model, tokenizer, limits);
  if (!prompt.ok()) {
    problems.Add(
        std::string_view(prompt.status().message().data(), prompt.status().message().size()));
    return problems.status();
  }
  parsed.prompt = *std::move(prompt);
  if (parsed.prompt.empty()) {
    problems.Add("the prompt has no tokens, must have at least one");
    return problems.status();
  }
  ParseLengths(request.sampling(), model, limits, static_cast<int64_t>(parsed.prompt.size()),
               &parsed.sampling, &problems);
  BATON_RETURN_IF_ERROR(problems.status());
  return parsed;
}

}  // namespace baton::server
