#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer_regex.h"

#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

// Backtracking steps of one match. Real patterns take a few per byte of the longest run of spaces.
constexpr uint32_t kMatchLimit = 200'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackBytes = 8 << 20;

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using CodePtr = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;

std::string ErrorText(int code) {
  char text[256] = {};
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof(text));
  return text;
}

absl::StatusOr<CodePtr> Compile(const std::string& pattern, uint32_t options) {
  const std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  BATON_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t offset = 0;
  CodePtr code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                             options | PCRE2_UTF, &error, &offset, context.get()));
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("regular expression: ", ErrorText(error),
                                                   " (at byte ", offset, " of '", pattern, "')"));
  }
  pcre2_jit_compile(code.get(),
                    PCRE2_JIT_COMPLETE);  // where there is no JIT, the interpreter does it
  return code;
}

// What a match writes to: one per thread, so that Regex itself stays immutable.
struct Scratch {
  std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>> data{
      pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr)};
  std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>> context{
      pcre2_match_context_create(nullptr)};

  Scratch() {
    BATON_CHECK(data != nullptr && stack != nullptr && context != nullptr);
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKib);
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

}  // namespace

struct Regex::Code {
  CodePtr fast;
  CodePtr modern;  // null where it would be the same
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

absl::StatusOr<Regex> Regex::FromOniguruma(std::string_view pattern) {
  constexpr uint32_t kOptions = PCRE2_UCP | PCRE2_MULTILINE;
  BATON_ASSIGN_OR_RETURN(const std::string fast, TranslateOnigurumaPattern(pattern, false));
  BATON_ASSIGN_OR_RETURN(const std::string modern, TranslateOnigurumaPattern(pattern, true));
  auto code = std::make_unique<Code>();
  BATON_ASSIGN_OR_RETURN(code->fast, Compile(fast, kOptions));
  if (modern != fast) {
    BATON_ASSIGN_OR_RETURN(code->modern, Compile(modern, kOptions));
  }
  return Regex(std::move(code));
}

absl::StatusOr<Regex> Regex::FromLiteral(std::string_view text) {
  if (text.empty() || !IsValidUtf8(text)) {
    return absl::InvalidArgumentError("the string to split at must be valid UTF-8 and not empty");
  }
  auto code = std::make_unique<Code>();
  BATON_ASSIGN_OR_RETURN(code->fast, Compile(std::string(text), PCRE2_LITERAL));
  return Regex(std::move(code));
}

absl::Status Regex::Cut(std::string_view text, bool modern, SpanSink sink) const {
  thread_local Scratch scratch;
  const pcre2_code* code = modern && code_->modern ? code_->modern.get() : code_->fast.get();
  const size_t* match = pcre2_get_ovector_pointer(scratch.data.get());
  size_t done = 0;    // everything before this has been handed out
  size_t search = 0;  // where the next search starts
  bool first = true;
  while (search <= text.size()) {
    const int found =
        pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), search,
                    PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("a split pattern gave up near byte ", search,
                                                       " of ", text.size(), ": ",
                                                       ErrorText(found)));
    }
    const size_t begin = match[0], end = match[1];
    if (begin == end && !first && end == done) {
      // An empty match right after a match does not count; look on from the next character.
      if (search == text.size()) break;
      search += DecodeUtf8(text.substr(search)).bytes;
      continue;
    }
    if (done < begin) sink({done, begin, false});
    sink({begin, end, true});
    done = search = end;
    first = false;
  }
  if (done < text.size()) sink({done, text.size(), false});
  return absl::OkStatus();
}

}  // namespace baton::model
