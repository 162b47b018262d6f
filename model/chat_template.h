#ifndef BATON_MODEL_CHAT_TEMPLATE_H_
#define BATON_MODEL_CHAT_TEMPLATE_H_

// Renders the Jinja2 chat templates of checkpoints as `transformers` does (trim_blocks,
// lstrip_blocks, a sandbox without side effects). Supported: if/elif/else, for (with else, filter,
// unpacking, break, continue), set (also of namespace attributes and blocks), macros, raw,
// comments, whitespace control; the usual operators, slices, conditional expressions, and the
// tests, filters and methods that chat_template_builtins.cc lists. Anything else is an error that
// names the line and the construct.
//
// Immutable after Compile: callable from any thread. A rendering is bounded in steps, depth and
// bytes.

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace baton::model {

namespace jinja {
struct Template;
}

class ChatTemplate {
 public:
  static constexpr size_t kMaxSourceBytes = size_t{1} << 20;
  static constexpr size_t kMaxOutputBytes = size_t{64} << 20;
  static constexpr int kMaxSteps = 2'000'000;

  // INVALID_ARGUMENT for a syntax error, UNIMPLEMENTED for what is not supported.
  static absl::StatusOr<ChatTemplate> Compile(std::string_view source);

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // `variables_json` is an object whose members are the template's variables: "messages",
  // "bos_token", "add_generation_prompt", ... INVALID_ARGUMENT for a failing operation or the
  // template's own raise_exception, RESOURCE_EXHAUSTED over a bound.
  absl::StatusOr<std::string> Render(std::string_view variables_json) const;

 private:
  explicit ChatTemplate(std::unique_ptr<const jinja::Template> parsed);

  std::unique_ptr<const jinja::Template> parsed_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_CHAT_TEMPLATE_H_
