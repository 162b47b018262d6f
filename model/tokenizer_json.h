#ifndef BATON_MODEL_TOKENIZER_JSON_H_
#define BATON_MODEL_TOKENIZER_JSON_H_

// A place in a JSON file that knows its own path, so that every error names file, key, value and
// what is expected. Internal to the tokenizer; include only from .cc files (nlohmann-json is
// heavy).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace baton::model {

class JsonNode {
 public:
  // `value` must outlive the node and all nodes made from it.
  JsonNode(const nlohmann::json& value, std::string file, std::string path = "")
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  // Parses `text`, which must hold one JSON object; INVALID_ARGUMENT says where it does not.
  static absl::StatusOr<nlohmann::json> ParseObject(std::string_view text,
                                                    const std::string& file) {
    try {
      nlohmann::json value = nlohmann::json::parse(text);
      if (value.is_object()) return value;
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": is ", value.type_name(), ", expected an object"));
    } catch (const nlohmann::json::exception& error) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": no valid JSON: ", error.what()));
    }
  }

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool is_null() const { return value_->is_null(); }

  // The member `key`, or none when it is missing or null. This must be an object.
  std::optional<JsonNode> Find(const std::string& key) const {
    const auto it = value_->find(key);
    if (it == value_->end() || it->is_null()) return std::nullopt;
    return JsonNode(*it, file_, path_.empty() ? key : absl::StrCat(path_, ".", key));
  }

  absl::StatusOr<JsonNode> Get(const std::string& key) const {
    if (!value_->is_object()) return Expected("an object");
    if (std::optional<JsonNode> node = Find(key)) return *std::move(node);
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": key '", path_.empty() ? key : absl::StrCat(path_, ".", key),
                     "' is missing or null"));
  }

  JsonNode At(size_t index) const {
    return JsonNode((*value_)[index], file_, absl::StrCat(path_, "[", index, "]"));
  }

  absl::StatusOr<std::string> GetString(const std::string& key) const {
    absl::StatusOr<JsonNode> node = Get(key);
    if (!node.ok()) return node.status();
    return node->AsString();
  }

  absl::StatusOr<std::string> AsString() const {
    if (!value_->is_string()) return Expected("a string");
    return value_->get<std::string>();
  }

  // `key` as a boolean; `fallback` when it is missing or null.
  absl::StatusOr<bool> GetBool(const std::string& key, bool fallback) const {
    const std::optional<JsonNode> node = Find(key);
    if (!node) return fallback;
    if (!node->value().is_boolean()) return node->Expected("true or false");
    return node->value().get<bool>();
  }

  // An integer in [0, limit).
  absl::StatusOr<int32_t> AsId(int32_t limit) const {
    const bool fits =
        value_->is_number_unsigned() && value_->get<uint64_t>() < static_cast<uint64_t>(limit);
    if (!fits) return Expected(absl::StrCat("an integer in [0, ", limit, ")"));
    return static_cast<int32_t>(value_->get<uint64_t>());
  }

  absl::Status ExpectObject() const {
    return value_->is_object() ? absl::OkStatus() : Expected("an object");
  }
  absl::Status ExpectArray() const {
    return value_->is_array() ? absl::OkStatus() : Expected("an array");
  }

  // INVALID_ARGUMENT: the value has the wrong type or range.
  absl::Status Expected(const std::string& what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": key '", path_, "' is ", Shown(), ", expected ", what));
  }

  // UNIMPLEMENTED: the value is well-formed, but nothing here can honour it.
  absl::Status Unsupported(const std::string& supported) const {
    return absl::UnimplementedError(
        absl::StrCat(file_, ": key '", path_, "' is ", Shown(), ", supported: ", supported));
  }

  // `status` with file and key in front.
  absl::Status Annotate(const absl::Status& status) const {
    return absl::Status(status.code(),
                        absl::StrCat(file_, ": key '", path_, "': ", status.message()));
  }

 private:
  // The value in JSON, cut to a length that fits a message. Large containers are named, not
  // printed.
  std::string Shown() const {
    if (value_->is_structured() && value_->size() > 8) {
      return absl::StrCat("an ", value_->type_name(), " of ", value_->size());
    }
    std::string text =
        value_->dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
  }

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_JSON_H_
