#ifndef BATON_MODEL_TOKENIZER_REGEX_H_
#define BATON_MODEL_TOKENIZER_REGEX_H_

// Split patterns of a tokenizer.json. They are written for Oniguruma (Ruby syntax); this translates
// the part of it that real tokenizers use to PCRE2, keeps its meaning (\s, \w, \h, line anchors,
// Unicode 16 classes), refuses the rest, and matches with the JIT. Internal to the tokenizer.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton::model {

// `pattern` for PCRE2 (with UTF, UCP, MULTILINE, newline LF). `modern` adds the code points that
// are newer than PCRE2's Unicode to every property; without it the result is faster, and equal on
// text that has none of them. UNIMPLEMENTED names the construct and its byte offset.
absl::StatusOr<std::string> TranslateOnigurumaPattern(std::string_view pattern, bool modern);

// Whether `text` (valid UTF-8) has a code point that the fast form of a pattern would misjudge.
bool HasModernCodePoint(std::string_view text);

// A compiled pattern. Immutable: callable from any thread.
class Regex {
 public:
  // A match, or the text between two of them, as byte offsets.
  struct Span {
    size_t begin;
    size_t end;
    bool is_match;
  };
  using SpanSink = absl::FunctionRef<void(const Span&)>;

  static absl::StatusOr<Regex> FromOniguruma(std::string_view pattern);
  // Matches the bytes of `text` themselves. `text` must not be empty.
  static absl::StatusOr<Regex> FromLiteral(std::string_view text);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Cuts `text` (valid UTF-8, not empty) into spans that cover it, from left to right, and hands
  // each to `sink`. `modern` as in TranslateOnigurumaPattern. RESOURCE_EXHAUSTED when a match
  // exceeds its limits.
  absl::Status Cut(std::string_view text, bool modern, SpanSink sink) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);

  std::unique_ptr<Code> code_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_REGEX_H_
