#ifndef BATON_MODEL_TOKENIZER_PARSE_H_
#define BATON_MODEL_TOKENIZER_PARSE_H_

// The sections of a tokenizer.json, one function each. Internal to the tokenizer; include only from
// .cc files.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_pretokenize.h"

namespace baton::model {

// Refuses members of the object that are not in `known`: nothing in a tokenizer.json is silently
// ignored.
absl::Status ExpectKeys(const JsonNode& object, std::initializer_list<std::string_view> known);

// The section `model`, but for byte_level.
absl::StatusOr<BpeSpec> ParseBpe(const JsonNode& model);

struct PreTokenizerSpec {
  std::vector<PreTokenizeStep> steps;
  bool byte_level = false;
};
// The section `pre_tokenizer`, which is not null.
absl::StatusOr<PreTokenizerSpec> ParsePreTokenizer(const JsonNode& node);

// OK for a `normalizer` that changes nothing.
absl::Status CheckNormalizer(const JsonNode& node);

// OK for a `decoder` that amounts to ByteLevel.
absl::Status CheckDecoder(const JsonNode& node);

// The section `post_processor`: ids around a text.
struct PostProcessorSpec {
  bool has_template = false;
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
};
absl::StatusOr<PostProcessorSpec> ParsePostProcessor(const JsonNode& node);

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_PARSE_H_
