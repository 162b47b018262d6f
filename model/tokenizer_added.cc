#include "model/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

// The last character of a text that is not empty.
std::string_view LastCharacter(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

// Bytes of white space at the end and at the start of a text.
size_t TrailingSpace(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const std::string_view last = LastCharacter(text.substr(0, text.size() - bytes));
    if (!IsWhiteSpace(DecodeUtf8(last).code_point)) break;
    bytes += last.size();
  }
  return bytes;
}

size_t LeadingSpace(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const Utf8Step step = DecodeUtf8(text.substr(bytes));
    if (!IsWhiteSpace(step.code_point)) break;
    bytes += step.bytes;
  }
  return bytes;
}

}  // namespace

void AddedTokenMatcher::Trie::Insert(std::string_view content, int token) {
  starts_[static_cast<uint8_t>(content[0])] = true;
  uint64_t node = 0;
  for (const char c : content) {
    const auto [it, inserted] = children_.try_emplace(node << 8 | static_cast<uint8_t>(c),
                                                      static_cast<uint32_t>(nodes_.size()));
    if (inserted) nodes_.push_back(-1);
    node = it->second;
  }
  nodes_[node] = token;
}

int AddedTokenMatcher::Trie::LongestPrefix(std::string_view text) const {
  if (!starts_[static_cast<uint8_t>(text[0])]) return -1;
  int longest = -1;
  uint64_t node = 0;
  for (const char c : text) {
    const auto it = children_.find(node << 8 | static_cast<uint8_t>(c));
    if (it == children_.end()) break;
    node = it->second;
    if (nodes_[node] >= 0) longest = nodes_[node];
  }
  return longest;
}

absl::StatusOr<AddedTokenMatcher> AddedTokenMatcher::Create(std::vector<AddedToken> tokens) {
  // What Rust's regex crate calls \w: unlike Oniguruma's it has the join controls and no
  // superscripts.
  BATON_ASSIGN_OR_RETURN(
      Regex word, Regex::FromOniguruma("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]"));
  return AddedTokenMatcher(std::move(tokens), std::move(word));
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens, Regex word)
    : tokens_(std::move(tokens)), word_character_(std::move(word)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    Trie& trie = tokens_[i].normalized ? normalized_ : raw_;
    trie.Insert(tokens_[i].content, static_cast<int>(i));
  }
}

std::vector<AddedSplit> AddedTokenMatcher::Split(std::string_view text, bool modern) const {
  std::vector<AddedSplit> raw;
  SplitStretch(raw_, text, modern, raw);
  if (normalized_.empty()) return raw;
  std::vector<AddedSplit> out;
  for (const AddedSplit& split : raw) {
    if (split.id) {
      out.push_back(split);
    } else {
      SplitStretch(normalized_, split.text, modern, out);
    }
  }
  return out;
}

void AddedTokenMatcher::SplitStretch(const Trie& trie, std::string_view text, bool modern,
                                     std::vector<AddedSplit>& out) const {
  size_t done = 0;  // everything before this has been handed out
  for (size_t at = 0; at < text.size();) {
    const int index = trie.LongestPrefix(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at, end = at + token.content.size();
    at = end;
    if (token.single_word && !IsSingleWord(text.substr(0, begin), text.substr(end), modern))
      continue;
    // White space that the token before swallowed stays with that one.
    if (token.lstrip) begin = std::max(begin - TrailingSpace(text.substr(0, begin)), done);
    if (token.rstrip) end += LeadingSpace(text.substr(end));
    if (done < begin) out.push_back({std::nullopt, text.substr(done, begin - done)});
    // White space that is a token itself vanishes when the token before has swallowed all of it.
    if (begin < end) out.push_back({token.id, token.content});
    done = end;
  }
  if (done < text.size()) out.push_back({std::nullopt, text.substr(done)});
}

bool AddedTokenMatcher::IsSingleWord(std::string_view before, std::string_view after,
                                     bool modern) const {
  const auto is_word = [&](std::string_view character) {
    bool match = false;
    const absl::Status status = word_character_.Cut(
        character, modern, [&](const Regex::Span& span) { match |= span.is_match; });
    BATON_CHECK_MSG(status.ok(), "one class on one character cannot reach a limit");
    return match;
  };
  if (!before.empty() && is_word(LastCharacter(before))) return false;
  return after.empty() || !is_word(after.substr(0, DecodeUtf8(after).bytes));
}

}  // namespace baton::model
