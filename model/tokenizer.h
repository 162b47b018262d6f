#ifndef BATON_MODEL_TOKENIZER_H_
#define BATON_MODEL_TOKENIZER_H_

// Text <-> token ids for an unmodified Hugging Face checkpoint directory, and its chat template.
//
// A Tokenizer is a byte-level BPE read from `tokenizer.json`, plus what `tokenizer_config.json`,
// `chat_template.jinja` and `generation_config.json` (each optional) say about BOS, EOS and chats.
// It gives the ids that the `tokenizers` package gives; whatever in those files it cannot honour is
// an error at load that names the key, the value and what is supported.
//
// Immutable after loading: every const method may be called from any thread at once. Nothing here
// blocks. This is the one header of model/ that server/ includes.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"

namespace baton::model {

struct TokenizerParts;

// The contents of the files of a checkpoint directory; an empty string stands for a file that is
// absent.
struct TokenizerFiles {
  std::string tokenizer_json;         // required
  std::string tokenizer_config_json;  // special tokens, add_bos_token, add_eos_token, chat_template
  std::string generation_config_json;  // eos_token_id
  std::string chat_template_jinja;     // wins over tokenizer_config's chat_template
};

struct ChatMessage {
  std::string role;     // "system", "user", "assistant" or what else the template knows
  std::string content;  // UTF-8; invalid bytes become U+FFFD
};

struct ChatOptions {
  // Ends the text with the header of the assistant's next turn.
  bool add_generation_prompt = true;
  // A JSON object with further variables of the template, such as {"thinking": true}. May be empty.
  std::string variables_json;
};

class Tokenizer {
 public:
  // Longest text that Encode takes.
  static constexpr size_t kMaxTextBytes = size_t{64} << 20;
  // Ids are below this; larger ones in a file are refused.
  static constexpr TokenId kMaxVocabSize = 1 << 22;

  // Reads `directory`. NOT_FOUND without a tokenizer.json, INVALID_ARGUMENT for a malformed file,
  // UNIMPLEMENTED for a well-formed one that asks for something unsupported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::string& directory);
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Parse(const TokenizerFiles& files);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of `text`. Invalid UTF-8 is first replaced by U+FFFD, one for each maximal part of a
  // character, as Python's bytes.decode("utf-8", "replace") does. Added tokens such as <|User|> are
  // recognised inside the text. `add_special_tokens` adds what the checkpoint puts around a text
  // (mostly BOS); pass false for text from RenderChat, whose template writes it itself. Takes O(n
  // log n) for n bytes. INVALID_ARGUMENT over kMaxTextBytes; RESOURCE_EXHAUSTED when a split
  // pattern needs more backtracking than its limit.
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              bool add_special_tokens = true) const;

  // The text of `ids`; bytes that form no UTF-8 character become U+FFFD. INVALID_ARGUMENT for ids
  // out of range.
  absl::StatusOr<std::string> Decode(std::span<const TokenId> ids,
                                     bool skip_special_tokens = false) const;

  // OK if every id is in [0, vocab_size()); else INVALID_ARGUMENT naming the first that is not, and
  // its index.
  absl::Status ValidateIds(std::span<const TokenId> ids) const;

  // One more than the highest id. The embedding of a checkpoint may have more rows than this.
  int32_t vocab_size() const;

  // The raw bytes of one token, often not whole UTF-8 characters. Empty for an id that names no
  // token. The view lives as long as the tokenizer.
  std::string_view IdToBytes(TokenId id) const;

  // The id of a token by its content as tokenizer.json spells it (byte-level alphabet for ordinary
  // tokens).
  std::optional<TokenId> TokenToId(std::string_view token) const;

  // Whether `id` is an added token with "special": true, which Decode skips on request.
  bool IsSpecial(TokenId id) const;

  std::optional<TokenId> bos_id() const;
  // Ids that end a generation: tokenizer_config's eos_token and generation_config's eos_token_id,
  // ascending.
  const std::vector<TokenId>& eos_ids() const;

  // Whether the checkpoint has a chat template; RenderChat says whether it can be used. A
  // checkpoint whose template goes beyond the supported part of Jinja still loads, for plain
  // completions.
  bool has_chat_template() const;

  // The prompt text of a conversation by the checkpoint's chat template. FAILED_PRECONDITION
  // without one; INVALID_ARGUMENT when the template refuses the messages (its own raise_exception)
  // or variables_json is no JSON object; UNIMPLEMENTED, with the template's line, for a construct
  // outside the supported part of Jinja; RESOURCE_EXHAUSTED when rendering takes too many steps.
  absl::StatusOr<std::string> RenderChat(std::span<const ChatMessage> messages,
                                         const ChatOptions& options) const;

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);

  std::unique_ptr<const TokenizerParts> parts_;
};

// Turns a stream of ids into text that never ends inside a UTF-8 character. The pieces, with
// Flush's last, concatenate to Tokenizer::Decode of all ids. Holds at most three bytes back. One
// thread; one per stream.
class StreamingDetokenizer {
 public:
  // `tokenizer` must outlive this.
  StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);

  // The text that `id` completes; often empty. Ids without a token (padding rows of an embedding)
  // add nothing.
  std::string Feed(TokenId id);

  // What the stream still held back, as U+FFFD. The detokenizer can then start another stream.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string held_;  // a proper prefix of one UTF-8 character
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_H_
