#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_syntax.h"
#include "model/tokenizer_utf8.h"

namespace baton::model::jinja {
namespace {

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Jinja's lexer under trim_blocks (a newline right after a block tag or comment goes) and
// lstrip_blocks (so does the white space between the start of a line and such a tag).
class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const size_t tag = FindTag();
      const std::string_view text = source_.substr(at_, tag - at_);
      if (tag == source_.size()) {
        EmitText(text);
        at_ = tag;
        break;
      }
      EmitText(BeforeTag(text, tag));
      Advance(tag);
      BATON_RETURN_IF_ERROR(Tag());
    }
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  char Peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }
  bool StartsWith(std::string_view text) const { return source_.substr(at_, text.size()) == text; }

  // Moves to `to`, counting lines.
  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_line_start_ = to > at_ ? source_[to - 1] == '\n' : at_line_start_;
    at_ = to;
  }

  size_t FindTag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] != '{') continue;
      if (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#') return i;
    }
    return source_.size();
  }

  // `text`, which stands between at_ and the tag, less what the tag strips of it.
  std::string_view BeforeTag(std::string_view text, size_t tag) const {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') return Strip(text, false, true, std::nullopt);
    if (sign == '+' || source_[tag + 1] == '{') return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !at_line_start_) return text;
    return Strip(text.substr(line), true, false, std::nullopt).empty() ? text.substr(0, line)
                                                                       : text;
  }

  void EmitText(std::string_view text) {
    if (!text.empty()) tokens_.push_back({TokenKind::kText, std::string(text), line_});
  }

  // Steps over the tag's end of `length` bytes and the white space that goes with it.
  void EndTag(size_t length, bool strip, bool trim) {
    size_t end = at_ + length;
    if (strip) {
      const std::string_view rest = source_.substr(end);
      end += rest.size() - Strip(rest, true, false, std::nullopt).size();
    } else if (trim && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    Advance(end);
  }

  absl::Status Tag() {
    const char kind = Peek(1);
    const bool sign = Peek(2) == '-' || Peek(2) == '+';
    if (kind == '#') return Comment();
    const int line = line_;
    Advance(at_ + (sign ? 3 : 2));
    if (kind == '%' && TakeRawBegin()) return Raw(line);
    const bool block = kind == '%';
    tokens_.push_back({block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "", line});
    int brackets = 0;
    while (true) {
      SkipSpace();
      if (at_ >= source_.size()) return InvalidAt(line, "a tag without its end");
      if (brackets == 0 && TakeTagEnd(block)) return absl::OkStatus();
      BATON_RETURN_IF_ERROR(OneToken(brackets));
    }
  }

  bool TakeTagEnd(bool block) {
    const std::string_view end = block ? "%}" : "}}";
    const bool signed_end = Peek() == '-' || (block && Peek() == '+');
    if (source_.substr(at_ + (signed_end ? 1 : 0), 2) != end) return false;
    tokens_.push_back({block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "", line_});
    EndTag(signed_end ? 3 : 2, Peek() == '-', block && Peek() != '+');
    return true;
  }

  absl::Status Comment() {
    const size_t begin = at_ + (Peek(2) == '-' || Peek(2) == '+' ? 3 : 2);
    const size_t end = source_.find("#}", begin);
    if (end == std::string_view::npos) return InvalidAt(line_, "a comment without its end");
    const char sign = end > begin ? source_[end - 1] : '\0';
    Advance(end);
    EndTag(2, sign == '-', sign != '+');
    return absl::OkStatus();
  }

  // After "{%": whether the tag is `raw`; if so, steps over it.
  bool TakeRawBegin() {
    size_t at = at_;
    const auto skip = [&] {
      while (at < source_.size() && absl::ascii_isspace(static_cast<unsigned char>(source_[at])))
        ++at;
    };
    skip();
    if (source_.substr(at, 3) != "raw") return false;
    at += 3;
    skip();
    const bool strip = source_.substr(at, 1) == "-";
    if (source_.substr(at + (strip ? 1 : 0), 2) != "%}") return false;
    Advance(at);
    EndTag(strip ? 3 : 2, strip, /*trim=*/false);
    return true;
  }

  absl::Status Raw(int line) {
    for (size_t tag = source_.find("{%", at_); tag != std::string_view::npos;
         tag = source_.find("{%", tag + 2)) {
      size_t at = tag + 2;
      if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) ++at;
      while (at < source_.size() && absl::ascii_isspace(static_cast<unsigned char>(source_[at])))
        ++at;
      if (source_.substr(at, 6) != "endraw") continue;
      at += 6;
      while (at < source_.size() && absl::ascii_isspace(static_cast<unsigned char>(source_[at])))
        ++at;
      const char sign = at < source_.size() ? source_[at] : '\0';
      const bool signed_end = sign == '-' || sign == '+';
      if (source_.substr(at + (signed_end ? 1 : 0), 2) != "%}") continue;
      EmitText(BeforeTag(source_.substr(at_, tag - at_), tag));
      Advance(at);
      EndTag(signed_end ? 3 : 2, sign == '-', sign != '+');
      return absl::OkStatus();
    }
    return InvalidAt(line, "raw without endraw");
  }

  void SkipSpace() {
    size_t end = at_;
    while (end < source_.size() && absl::ascii_isspace(static_cast<unsigned char>(source_[end])))
      ++end;
    Advance(end);
  }

  absl::Status OneToken(int& brackets) {
    const char c = Peek();
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      return Emit(TokenKind::kName, end);
    }
    if (IsDigit(c)) return Number();
    if (c == '"' || c == '\'') return String();
    for (const std::string_view op :
         {"**", "//", "==", "!=", "<=", ">=", "<", ">", "=", "+", "-", "~", "*",
          "/",  "%",  ".",  ",",  ":",  "|",  "(", ")", "[", "]", "{", "}"}) {
      if (!StartsWith(op)) continue;
      if (c == '(' || c == '[' || c == '{') ++brackets;
      if (c == ')' || c == ']' || c == '}') --brackets;
      if (brackets < 0)
        return InvalidAt(line_, absl::StrCat("a '", std::string(1, c), "' that closes nothing"));
      return Emit(TokenKind::kOp, at_ + op.size());
    }
    return InvalidAt(
        line_,
        absl::StrCat("unexpected character '",
                     std::string(source_.substr(at_, DecodeUtf8(source_.substr(at_)).bytes)), "'"));
  }

  absl::Status Emit(TokenKind kind, size_t end) {
    tokens_.push_back({kind, std::string(source_.substr(at_, end - at_)), line_});
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status Number() {
    size_t end = at_;
    bool is_float = false;
    while (end < source_.size() && IsDigit(source_[end])) ++end;
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      is_float = true;
      ++end;
      while (end < source_.size() && IsDigit(source_[end])) ++end;
    }
    const size_t places = end - at_;
    if ((end < source_.size() && IsNameStart(source_[end])) || places > (is_float ? 40 : 18)) {
      return UnsupportedAt(line_, "a number other than up to 18 digits, or a fraction of up to 40");
    }
    return Emit(is_float ? TokenKind::kFloat : TokenKind::kInt, end);
  }

  absl::Status String() {
    const char quote = Peek();
    const int line = line_;
    std::string value;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\') {
        value.push_back(source_[i]);
        continue;
      }
      if (++i >= source_.size()) break;
      BATON_RETURN_IF_ERROR(StringEscape(i, value));
    }
    if (i >= source_.size()) return InvalidAt(line, "a string without its end");
    tokens_.push_back({TokenKind::kString, std::move(value), line});
    Advance(i + 1);
    return absl::OkStatus();
  }

  // Python's escapes; `i` is at the character after the backslash, and ends at the escape's last
  // one.
  absl::Status StringEscape(size_t& i, std::string& value) {
    static constexpr std::string_view kFrom = "ntrfvab\\'\"", kTo = "\n\t\r\f\v\a\b\\'\"";
    const char c = source_[i];
    if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
      value.push_back(kTo[simple]);
      return absl::OkStatus();
    }
    if (c == '\n') return absl::OkStatus();  // a continued line
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (IsDigit(c) || c == 'N')
        return UnsupportedAt(line_, "an octal or named escape in a string");
      value.push_back('\\');  // Python keeps the backslash of what is no escape
      value.push_back(c);
      return absl::OkStatus();
    }
    const std::string hex(source_.substr(i + 1, digits));
    const bool valid = hex.size() == digits &&
                       std::all_of(hex.begin(), hex.end(),
                                   [](unsigned char h) { return absl::ascii_isxdigit(h); });
    const uint64_t code_point = valid ? std::stoull(hex, nullptr, 16) : 0x110000;
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF)) {
      return InvalidAt(line_, absl::StrCat("a malformed escape \\", std::string(1, c), hex));
    }
    AppendUtf8(static_cast<uint32_t>(code_point), value);
    i += digits;
    return absl::OkStatus();
  }

  const std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;  // the last thing consumed ended in a newline
  std::vector<Token> tokens_;
};

// Newlines as \n, and without the one that may end the file.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out.push_back('\n');
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

}  // namespace

absl::Status UnsupportedAt(int line, const std::string& what) {
  return absl::UnimplementedError(
      absl::StrCat("chat template, line ", line, ": ", what, " is not supported"));
}

absl::Status InvalidAt(int line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("chat template, line ", line, ": ", what));
}

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) {
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace baton::model::jinja
