#include "model/tokenizer_utf8.h"

#include "absl/container/flat_hash_map.h"

namespace baton::model {
namespace {

// The code point that stands for each byte in the byte-level alphabet.
std::array<uint32_t, 256> MakeAlphabetCodePoints() {
  std::array<uint32_t, 256> code_points;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    code_points[byte] = printable ? byte : next++;
  }
  return code_points;
}

}  // namespace

Utf8Step DecodeUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  // Length, payload of the lead byte, and the range of the second byte, which excludes overlong
  // forms, surrogates and what lies above U+10FFFF (Unicode, table 3-7).
  uint32_t length = 0;
  uint8_t second_low = 0x80, second_high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) second_low = 0xA0;
    if (lead == 0xED) second_high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) second_low = 0x90;
    if (lead == 0xF4) second_high = 0x8F;
  } else {
    return {0xFFFD, 1, false, false};
  }
  uint32_t code_point = lead & (0x7Fu >> length);
  for (uint32_t i = 1; i < length; ++i) {
    if (i == text.size()) return {0xFFFD, i, false, true};
    const uint8_t low = i == 1 ? second_low : 0x80, high = i == 1 ? second_high : 0xBF;
    if (byte(i) < low || byte(i) > high) return {0xFFFD, i, false, false};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  return {code_point, length, true, false};
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    out += step.valid ? text.substr(0, step.bytes) : kReplacementCharacter;
    text.remove_prefix(step.bytes);
  }
  return out;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    if (!step.valid) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

size_t IncompleteUtf8Suffix(std::string_view text) {
  for (size_t length = 1; length <= 3 && length <= text.size(); ++length) {
    const std::string_view tail = text.substr(text.size() - length);
    if ((static_cast<uint8_t>(tail[0]) & 0xC0) == 0x80)
      continue;  // the lead byte stands further left
    const Utf8Step step = DecodeUtf8(tail);
    return step.truncated && step.bytes == length ? length : 0;
  }
  return 0;
}

void AppendUtf8(uint32_t code_point, std::string& out) {
  const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  const auto continuation = [&](int shift) { push(0x80 | (code_point >> shift & 0x3F)); };
  if (code_point < 0x80) {
    push(code_point);
  } else if (code_point < 0x800) {
    push(0xC0 | code_point >> 6);
    continuation(0);
  } else if (code_point < 0x10000) {
    push(0xE0 | code_point >> 12);
    continuation(6);
    continuation(0);
  } else {
    push(0xF0 | code_point >> 18);
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

const std::array<std::string, 256>& ByteAlphabet() {
  static const std::array<std::string, 256>& alphabet = *[] {
    auto* characters = new std::array<std::string, 256>;
    const std::array<uint32_t, 256> code_points = MakeAlphabetCodePoints();
    for (size_t byte = 0; byte < 256; ++byte) AppendUtf8(code_points[byte], (*characters)[byte]);
    return characters;
  }();
  return alphabet;
}

std::string BytesOfToken(std::string_view token) {
  static const absl::flat_hash_map<uint32_t, char>& byte_of = *[] {
    auto* bytes = new absl::flat_hash_map<uint32_t, char>;
    const std::array<uint32_t, 256> code_points = MakeAlphabetCodePoints();
    for (size_t byte = 0; byte < 256; ++byte) (*bytes)[code_points[byte]] = static_cast<char>(byte);
    return bytes;
  }();
  std::string out;
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Step step = DecodeUtf8(rest);
    const auto it = byte_of.find(step.code_point);
    if (!step.valid || it == byte_of.end()) return std::string(token);
    out.push_back(it->second);
    rest.remove_prefix(step.bytes);
  }
  return out;
}

}  // namespace baton::model
