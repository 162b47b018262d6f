#ifndef BATON_MODEL_TOKENIZER_PARTS_H_
#define BATON_MODEL_TOKENIZER_PARTS_H_

// What a Tokenizer is made of, as parsed from a checkpoint's files. Internal to the tokenizer.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/tokenizer_added.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_pretokenize.h"

namespace baton::model {

struct TokenizerParts {
  std::vector<AddedToken> added_tokens;
  std::optional<AddedTokenMatcher> matcher;
  std::optional<PreTokenizer> pre_tokenizer;
  std::unique_ptr<const BytePairEncoder> bpe;

  // What a text gets in front and behind when special tokens are asked for.
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;

  absl::flat_hash_map<std::string, TokenId> added_ids;  // by content
  std::string token_bytes;                              // of all ids, one after the other
  std::vector<uint32_t> token_offsets;                  // [vocab_size + 1] into token_bytes
  std::vector<bool> special;                            // [vocab_size]

  std::optional<TokenId> bos_id;
  std::vector<TokenId> eos_ids;

  std::string special_tokens_json;  // {"bos_token": "...", ...}: variables of the chat template
  absl::Status chat_status;
  std::optional<ChatTemplate> chat_template;  // set iff chat_status is OK

  std::optional<TokenId> FindToken(std::string_view token) const;
};

// Parses and checks all files. Errors as of Tokenizer::Load.
absl::StatusOr<std::unique_ptr<const TokenizerParts>> ParseTokenizerParts(
    const TokenizerFiles& files);

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_PARTS_H_
