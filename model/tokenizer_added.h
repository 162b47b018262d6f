#ifndef BATON_MODEL_TOKENIZER_ADDED_H_
#define BATON_MODEL_TOKENIZER_ADDED_H_

// Finds added tokens (<|User|>, <think>, ...) inside text, as the `tokenizers` package does:
// leftmost match first, the longest there, those with "normalized": false before the others.
// Internal to the tokenizer. Immutable once built: callable from any thread.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "model/tokenizer_regex.h"

namespace baton::model {

struct AddedToken {
  TokenId id = 0;
  std::string content;       // not empty
  bool special = false;      // skipped by Decode on request
  bool normalized = false;   // sought after normalization, so after the other tokens
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // swallows the white space after it
  bool single_word = false;  // only where no word character touches it
};

// A stretch of text (id unset), or an added token.
struct AddedSplit {
  std::optional<TokenId> id;
  std::string_view text;
};

class AddedTokenMatcher {
 public:
  static absl::StatusOr<AddedTokenMatcher> Create(std::vector<AddedToken> tokens);

  // Cuts `text` (valid UTF-8) at the added tokens; `modern` is HasModernCodePoint of it. No stretch
  // is empty.
  std::vector<AddedSplit> Split(std::string_view text, bool modern) const;

 private:
  // All tokens of one pass in a trie of bytes.
  class Trie {
   public:
    void Insert(std::string_view content, int token);
    // The token of the longest content that `text` starts with, or -1.
    int LongestPrefix(std::string_view text) const;
    bool empty() const { return nodes_.size() == 1; }

   private:
    std::vector<int> nodes_ = {-1};                     // node -> token that ends there
    absl::flat_hash_map<uint64_t, uint32_t> children_;  // node << 8 | byte -> node
    bool starts_[256] = {};
  };

  AddedTokenMatcher(std::vector<AddedToken> tokens, Regex word);
  void SplitStretch(const Trie& trie, std::string_view text, bool modern,
                    std::vector<AddedSplit>& out) const;
  bool IsSingleWord(std::string_view before, std::string_view after, bool modern) const;

  std::vector<AddedToken> tokens_;
  Regex word_character_;
  Trie raw_;         // "normalized": false
  Trie normalized_;  // "normalized": true
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_ADDED_H_
