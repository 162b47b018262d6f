#ifndef BATON_SERVER_REQUEST_PARSER_H_
#define BATON_SERVER_REQUEST_PARSER_H_

// Client messages -> validated, tokenized requests. Every problem of a message is reported at once,
// each naming the field, the value and the allowed range. Pure; any thread.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "model/tokenizer.h"
#include "scheduler/types.h"
#include "server/model_description.h"

namespace baton::v1 {
class ChatMessages;
class GenerateRequest;
}  // namespace baton::v1

namespace baton::server {

struct RequestLimits {
  int32_t default_max_tokens = 512;  // for requests that do not say; less when the context is full
  int32_t max_prompt_tokens = 0;     // 0: what the context allows
  int32_t max_stop_strings = 16;
  int32_t max_stop_bytes = 256;
  int32_t max_stop_token_ids = 64;
  int32_t max_top_logprobs = 20;
  int32_t max_request_id_bytes = 128;
  int32_t max_chat_messages = 4096;
  int32_t max_cache_salt_bytes = 256;
};

struct ParsedRequest {
  std::string client_id;  // the client's request_id; may be empty
  std::vector<TokenId> prompt;
  scheduler::SamplingParams sampling;
  std::vector<std::string> stop_strings;
  std::string cache_salt;
};

// `fresh_seed` is used when the client gave none. NOT_FOUND for a model that is not served,
// INVALID_ARGUMENT for everything else.
absl::StatusOr<ParsedRequest> ParseGenerateRequest(const v1::GenerateRequest& request,
                                                   const ModelDescription& model,
                                                   const model::Tokenizer& tokenizer,
                                                   const RequestLimits& limits,
                                                   uint64_t fresh_seed);

// NOT_FOUND unless `name` is empty or the served model's.
absl::Status CheckModelName(const std::string& name, const ModelDescription& model);

// The prompt ids of a conversation. INVALID_ARGUMENT for unknown roles and an empty list, and
// whatever the chat template refuses.
absl::StatusOr<std::vector<TokenId>> TokenizeChat(const v1::ChatMessages& chat,
                                                  const model::Tokenizer& tokenizer,
                                                  const RequestLimits& limits);

}  // namespace baton::server

#endif  // BATON_SERVER_REQUEST_PARSER_H_
