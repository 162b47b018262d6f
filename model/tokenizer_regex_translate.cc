#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "model/tokenizer_regex.h"
#include "model/tokenizer_unicode_delta.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

constexpr std::string_view kCategories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn",
                                            "Mc", "Me", "N",  "Nd", "Nl", "No", "P",  "Pc",
                                            "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
                                            "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "Alphabetic"};
constexpr std::string_view kScripts[] = {"Han",    "Hiragana", "Katakana",  "Hangul",
                                         "Latin",  "Greek",    "Cyrillic",  "Arabic",
                                         "Hebrew", "Thai",     "Devanagari"};

// Bodies of classes, in PCRE2's words, that mean what Oniguruma's escapes mean.
constexpr std::string_view kSpace = "\\t-\\r \\x{85}\\p{Z}";
constexpr std::string_view kNotSpace = "\\S\\x{180E}";  // PCRE2 still counts U+180E as a space
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
// Outside of a class, Oniguruma's \w also takes these Latin-1 superscripts and fractions.
constexpr std::string_view kWordExtra = "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

// The delta ranges of a category (by its first letter too), script or Alphabetic, as the body of a
// class.
std::string DeltaRanges(std::string_view property) {
  std::string body;
  for (const UnicodeDelta& delta : UnicodeDeltas()) {
    const std::string_view name = delta.property;
    const bool in =
        name == property || (property.size() == 1 && name.size() == 2 && name[0] == property[0]);
    if (in) absl::StrAppendFormat(&body, "\\x{%X}-\\x{%X}", delta.first, delta.last);
  }
  return body;
}

// One pass over a pattern, emitting PCRE2 as it goes.
class Translator {
 public:
  Translator(std::string_view pattern, bool modern) : in_(pattern), modern_(modern) {}

  absl::StatusOr<std::string> Run() {
    while (!AtEnd()) BATON_RETURN_IF_ERROR(Element());
    return std::move(out_);
  }

 private:
  bool AtEnd() const { return at_ >= in_.size(); }
  char Peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool Take(std::string_view text) {
    if (in_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(
        absl::StrFormat("regular expression: %s at byte %d of '%s' is not supported",
                        std::string(what), at_, std::string(in_)));
  }

  // The character at the front, whole.
  uint32_t TakeCodePoint() {
    const Utf8Step step = DecodeUtf8(in_.substr(at_));
    at_ += step.bytes;
    return step.code_point;
  }

  static void EmitLiteral(uint32_t code_point, std::string& out) {
    const bool plain =
        code_point < 0x80 && absl::ascii_isalnum(static_cast<unsigned char>(code_point));
    if (plain) {
      out.push_back(static_cast<char>(code_point));
    } else {
      absl::StrAppendFormat(&out, "\\x{%X}", code_point);
    }
  }

  absl::Status Element() {
    switch (Peek()) {
      case '\\':
        return Escape();
      case '[':
        return Class();
      case '(':
        return GroupStart();
      case '*':
      case '+':
      case '?':
        return Quantifier(std::string(1, in_[at_++]), /*interval=*/false);
      case '{':
        return Interval();
      case ')':
      case '|':
      case '.':
      case '^':
      case '$':
        out_.push_back(in_[at_++]);
        return absl::OkStatus();
      default:
        EmitLiteral(TakeCodePoint(), out_);
        return absl::OkStatus();
    }
  }

  // After * + ? and {n,m}: a lazy '?' or a possessive '+', which Ruby's syntax gives other meanings
  // after {}.
  absl::Status Quantifier(std::string quantifier, bool interval) {
    const char next = Peek();
    if (interval && (next == '+' || next == '?')) return Unsupported("a '+' or '?' after {...}");
    if (next == '+' || next == '?') quantifier.push_back(in_[at_++]);
    if (Peek() == '*' || Peek() == '+' || Peek() == '?')
      return Unsupported("a quantifier of a quantifier");
    out_ += quantifier;
    return absl::OkStatus();
  }

  absl::Status Interval() {
    const size_t close = in_.find('}', at_);
    const std::string_view body =
        close == std::string_view::npos ? std::string_view() : in_.substr(at_ + 1, close - at_ - 1);
    const size_t comma = body.find(',');
    const auto number = [](std::string_view digits) {
      return !digits.empty() && digits.size() <= 4 &&
             std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    };
    const std::string_view low = body.substr(0, comma);
    const std::string_view high = comma == std::string_view::npos ? low : body.substr(comma + 1);
    if (!number(low) || !(number(high) || high.empty()))
      return Unsupported("'{' that opens no {n}, {n,} or {n,m}");
    at_ = close + 1;
    return Quantifier(absl::StrCat("{", std::string(body), "}"), /*interval=*/true);
  }

  absl::Status GroupStart() {
    if (Peek(1) != '?') {
      out_ += "(?:";  // captures are never read
      ++at_;
      return absl::OkStatus();
    }
    for (const std::string_view start :
         {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (Take(start)) {
        out_ += start;
        return absl::OkStatus();
      }
    }
    // Elsewhere Ruby lets the option reach over the alternatives that follow.
    if (at_ == 0 && Take("(?i)")) {
      out_ += "(?i)";
      return absl::OkStatus();
    }
    return Unsupported(
        "a group other than (...), (?:), (?=), (?!), (?<=), (?<!), (?>), (?i:) or a leading (?i)");
  }

  // What \w means inside of a class.
  std::string Word() const {
    if (!modern_) return std::string(kWord);
    return absl::StrCat(std::string(kWord), DeltaRanges("Alphabetic"), DeltaRanges("M"),
                        DeltaRanges("Nd"), DeltaRanges("Pc"));
  }

  // An escape outside of a class. Sets become classes, so that delta ranges can join them.
  absl::Status Escape() {
    const std::string word = Word() + std::string(kWordExtra);
    const auto emit = [&](size_t length, const std::string& text) {
      at_ += length;
      out_ += text;
      return absl::OkStatus();
    };
    switch (Peek(1)) {
      case 'b':
        return emit(2, absl::StrFormat("(?:(?<=[%1$s])(?![%1$s])|(?<![%1$s])(?=[%1$s]))", word));
      case 'B':
        return emit(2, absl::StrFormat("(?:(?<=[%1$s])(?=[%1$s])|(?<![%1$s])(?![%1$s]))", word));
      case 'w':
        return emit(2, absl::StrCat("[", word, "]"));
      case 'W':
        return emit(2, absl::StrCat("[^", word, "]"));
      case 'S':
        return emit(2, absl::StrCat("[^", std::string(kSpace), "]"));
      case 'H':
        return emit(2, absl::StrCat("[^", std::string(kHexDigit), "]"));
      case 'D':
        return emit(2, absl::StrCat("[^\\p{Nd}", modern_ ? DeltaRanges("Nd") : "", "]"));
      case 'A':
      case 'z':
      case 'Z':
        return emit(2, absl::StrCat("\\", std::string(1, Peek(1))));
      case 'P':
      case 'p': {
        bool negated = false;
        std::string body;
        BATON_RETURN_IF_ERROR(Property(negated, body));
        absl::StrAppend(&out_, negated ? "[^" : "[", body, "]");
        return absl::OkStatus();
      }
      default: {
        ClassItem item;
        BATON_RETURN_IF_ERROR(CommonEscape(item));
        if (item.is_set) {
          absl::StrAppend(&out_, "[", item.set, "]");
        } else {
          EmitLiteral(item.code_point, out_);
        }
        return absl::OkStatus();
      }
    }
  }

  struct ClassItem {
    bool is_set = false;
    std::string set;  // body of a class
    uint32_t code_point = 0;
  };

  // Escapes that mean the same inside and outside of a class.
  absl::Status CommonEscape(ClassItem& item) {
    const char c = Peek(1);
    const auto set = [&](std::string body) {
      at_ += 2;
      item.is_set = true;
      item.set = std::move(body);
      return absl::OkStatus();
    };
    const auto literal = [&](uint32_t code_point) {
      at_ += 2;
      item.code_point = code_point;
      return absl::OkStatus();
    };
    switch (c) {
      case 's':
        return set(std::string(kSpace));
      case 'w':
        return set(Word());
      case 'd':
        return set(absl::StrCat("\\p{Nd}", modern_ ? DeltaRanges("Nd") : ""));
      case 'h':
        return set(std::string(kHexDigit));
      case 't':
        return literal('\t');
      case 'n':
        return literal('\n');
      case 'r':
        return literal('\r');
      case 'f':
        return literal('\f');
      case 'v':
        return literal('\v');
      case 'a':
        return literal('\a');
      case 'e':
        return literal(0x1B);
      case 'u':
      case 'x':
        return HexEscape(item);
      default:
        break;
    }
    if (at_ + 1 >= in_.size() || absl::ascii_isalnum(static_cast<unsigned char>(c))) {
      return Unsupported(absl::StrCat("the escape \\", std::string(1, c)).c_str());
    }
    ++at_;
    item.code_point = TakeCodePoint();
    return absl::OkStatus();
  }

  // \xHH, \x{H...} and \uHHHH.
  absl::Status HexEscape(ClassItem& item) {
    std::string_view digits = in_.substr(at_ + 2);
    size_t length = 2;
    if (Peek(1) == 'u') {
      digits = digits.substr(0, 4);
      length += 4;
    } else if (Peek(2) == '{') {
      digits = digits.substr(1, std::min(digits.find('}'), size_t{10}) - 1);
      length += digits.size() + 2;
    } else {
      digits = digits.substr(0, 2);
      length += 2;
    }
    const bool hex = !digits.empty() && digits.size() <= 8 &&
                     std::all_of(digits.begin(), digits.end(),
                                 [](unsigned char d) { return absl::ascii_isxdigit(d); });
    if (!hex || at_ + length > in_.size()) return Unsupported("a malformed \\x or \\u escape");
    const uint64_t value = std::stoull(std::string(digits), nullptr, 16);
    const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
    const bool raw_byte = Peek(1) == 'x' && Peek(2) != '{' && value >= 0x80;
    if (value > 0x10FFFF || surrogate || raw_byte)
      return Unsupported("a \\x or \\u escape of no character");
    at_ += length;
    item.code_point = static_cast<uint32_t>(value);
    return absl::OkStatus();
  }

  // \p{Name}, \p{^Name} and \P{Name}, as the body of a class and whether it is to be negated.
  absl::Status Property(bool& negated, std::string& body) {
    const size_t close = in_.find('}', at_);
    if (Peek(2) != '{' || close == std::string_view::npos) return Unsupported("\\p without {...}");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    negated = Peek(1) == 'P';
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool script =
        std::find(std::begin(kScripts), std::end(kScripts), name) != std::end(kScripts);
    const bool category =
        std::find(std::begin(kCategories), std::end(kCategories), name) != std::end(kCategories);
    if (!script && !category) {
      return Unsupported(
          absl::StrCat("the property '", std::string(name),
                       "' (general categories but C, Alphabetic and the larger scripts are)"));
    }
    body = absl::StrCat("\\p{", script ? "sc:" : "", std::string(name), "}",
                        modern_ ? DeltaRanges(name) : "");
    at_ = close + 1;
    return absl::OkStatus();
  }

  absl::Status Class() {
    ++at_;
    std::string body = Peek() == '^' ? "[^" : "[";
    if (Peek() == '^') ++at_;
    bool first = true;
    while (first || Peek() != ']') {
      if (AtEnd()) return Unsupported("a class without its ']'");
      if (Peek() == '[') return Unsupported("a class inside a class");
      if (Peek() == '&' && Peek(1) == '&') return Unsupported("an intersection '&&' of classes");
      ClassItem item;
      BATON_RETURN_IF_ERROR(TakeClassItem(item));
      first = false;
      if (item.is_set) {
        body += item.set;
        continue;
      }
      EmitLiteral(item.code_point, body);
      if (Peek() != '-' || Peek(1) == ']' || Peek(1) == '\0') continue;
      ++at_;
      ClassItem last;
      if (Peek() == '[') return Unsupported("a class inside a class");
      BATON_RETURN_IF_ERROR(TakeClassItem(last));
      if (last.is_set || last.code_point < item.code_point)
        return Unsupported("a malformed range of a class");
      body.push_back('-');
      EmitLiteral(last.code_point, body);
    }
    ++at_;
    absl::StrAppend(&out_, body, "]");
    return absl::OkStatus();
  }

  absl::Status TakeClassItem(ClassItem& item) {
    if (Peek() != '\\') {
      item.code_point = TakeCodePoint();
      return absl::OkStatus();
    }
    switch (Peek(1)) {
      case 'S':
        at_ += 2;
        item.is_set = true;
        item.set = std::string(kNotSpace);
        return absl::OkStatus();
      case 'p':
      case 'P': {
        bool negated = false;
        const std::string name(in_.substr(at_, in_.find('}', at_) + 1 - at_));
        BATON_RETURN_IF_ERROR(Property(negated, item.set));
        item.is_set = true;
        if (!negated) return absl::OkStatus();
        // A class can add ranges to a property's complement, not take them away.
        const size_t ranges = item.set.find("}\\x");
        if (modern_ && ranges != std::string::npos)
          return Unsupported(absl::StrCat(name, " inside a class"));
        item.set[1] = 'P';
        return absl::OkStatus();
      }
      case 'b':
      case 'B':
      case 'D':
      case 'W':
      case 'H':
        return Unsupported(absl::StrCat("\\", std::string(1, Peek(1)), " inside a class"));
      default:
        return CommonEscape(item);
    }
  }

  const std::string_view in_;
  const bool modern_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOnigurumaPattern(std::string_view pattern, bool modern) {
  if (!IsValidUtf8(pattern)) {
    return absl::InvalidArgumentError("regular expression: the pattern is not valid UTF-8");
  }
  return Translator(pattern, modern).Run();
}

bool HasModernCodePoint(std::string_view text) {
  // Most blocks of 256 code points have none: one look decides those.
  static const std::vector<bool>& blocks = *[] {
    auto* marked = new std::vector<bool>(0x110000 >> 8);
    for (const UnicodeDelta& delta : UnicodeDeltas()) {
      for (uint32_t block = delta.first >> 8; block <= delta.last >> 8; ++block)
        (*marked)[block] = true;
    }
    return marked;
  }();
  for (size_t at = 0; at < text.size();) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Step step = DecodeUtf8(text.substr(at));
    at += step.bytes;
    if (!blocks[step.code_point >> 8]) continue;
    for (const UnicodeDelta& delta : UnicodeDeltas()) {
      if (step.code_point >= delta.first && step.code_point <= delta.last) return true;
    }
  }
  return false;
}

}  // namespace baton::model
