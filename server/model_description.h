#ifndef BATON_SERVER_MODEL_DESCRIPTION_H_
#define BATON_SERVER_MODEL_DESCRIPTION_H_

// What the front ends know of the served model: filled once from the checkpoint by main, read by
// everybody. Plain values, so that server/ needs no other header of model/ than the tokenizer's.
// Hash and KV format are the workers' affair: a router process has no weights to hash and learns
// both when workers connect (ServerSummary).

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/ids.h"

namespace baton::server {

struct ModelDescription {
  std::string name;
  std::string hash;          // empty in a router process
  std::string architecture;  // model_type
  int64_t parameters = 0;
  int64_t active_parameters = 0;  // multiplied for one token
  std::string weight_format;
  std::string kv_format;  // empty in a router process
  // Of all layers, by KV format.
  std::map<std::string, int64_t> kv_bytes_per_token;
  int32_t layers = 0;
  int32_t vocab_size = 0;      // rows of the embedding: prompt ids lie below
  int32_t context_tokens = 0;  // prompt and output together, at most
  std::vector<TokenId> eos_token_ids;
  // generation_config.json: for requests that do not say.
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_MODEL_DESCRIPTION_H_
