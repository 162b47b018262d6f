#ifndef BATON_MODEL_TOKENIZER_UTF8_H_
#define BATON_MODEL_TOKENIZER_UTF8_H_

// UTF-8 by the letter: what counts as valid, how invalid bytes are replaced, and the byte-level
// alphabet. Internal to the tokenizer. Pure functions, callable from any thread.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace baton::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// One step of a decoder at the front of `text`, which must not be empty.
struct Utf8Step {
  uint32_t code_point = 0;  // 0xFFFD when invalid
  uint32_t bytes = 1;  // length of the character, or of the maximal part of one that is invalid
  bool valid = false;
  bool truncated = false;  // invalid only because the text ends inside a character
};
Utf8Step DecodeUtf8(std::string_view text);

// `text` with each maximal invalid part replaced by U+FFFD: the substitution that Unicode
// recommends (chapter 3.9) and that Python's bytes.decode("utf-8", "replace") and Rust's
// from_utf8_lossy perform.
std::string ReplaceInvalidUtf8(std::string_view text);
bool IsValidUtf8(std::string_view text);

// Length of the tail of `text` that is a proper prefix of a character: 0..3 bytes that more bytes
// may complete.
size_t IncompleteUtf8Suffix(std::string_view text);

void AppendUtf8(uint32_t code_point, std::string& out);

// The property White_Space, which Rust's char::is_whitespace and Oniguruma's \s stand for.
bool IsWhiteSpace(uint32_t code_point);

// The byte-level alphabet of GPT-2: each byte as one printable character. Bytes that are printable
// in Latin-1 stand for themselves; the other 68 are U+0100, U+0101, ... in order.
const std::array<std::string, 256>& ByteAlphabet();

// The bytes that `token` spells in that alphabet; the token's own bytes if one of its characters is
// outside of it (as in added tokens).
std::string BytesOfToken(std::string_view token);

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_UTF8_H_
