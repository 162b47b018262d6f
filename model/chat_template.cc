#include "model/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_syntax.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {

ChatTemplate::ChatTemplate(std::unique_ptr<const jinja::Template> parsed)
    : parsed_(std::move(parsed)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<ChatTemplate> ChatTemplate::Compile(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat template: has ", source.size(),
                                                   " bytes, expected at most ", kMaxSourceBytes));
  }
  if (!IsValidUtf8(source)) return absl::InvalidArgumentError("chat template: is not valid UTF-8");
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<const jinja::Template> parsed, jinja::Parse(source));
  return ChatTemplate(std::move(parsed));
}

absl::StatusOr<std::string> ChatTemplate::Render(std::string_view variables_json) const {
  absl::StatusOr<jinja::Value> variables = jinja::Value::FromJson(variables_json);
  if (variables.ok() && !variables->is_dict())
    variables = absl::InvalidArgumentError("the variables are no JSON object");
  if (!variables.ok()) {
    return absl::Status(variables.status().code(),
                        absl::StrCat("chat template: ", variables.status().message()));
  }
  return jinja::Evaluate(*parsed_, *variables);
}

}  // namespace baton::model
