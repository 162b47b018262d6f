#ifndef BATON_MODEL_JSON_FIELDS_H_
#define BATON_MODEL_JSON_FIELDS_H_

// Reads fields of a JSON object and gathers every problem, so that a user sees all of them at once.
// Internal to model/; include only from .cc files (nlohmann-json is heavy).

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/ids.h"
#include "nlohmann/json.hpp"

namespace baton::model {

// Parses `text` as one JSON object of at most `max_bytes`.
inline absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text,
                                                      const std::string& source, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": ", text.size(), " bytes of JSON; at most ", max_bytes, " are read"));
  }
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded())
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": not valid JSON (cut short or damaged?); copy it again"));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": holds no JSON object"));
  }
  return value;
}

// The value as JSON text, cut to a length that fits a message.
inline std::string JsonShown(const nlohmann::json& value) {
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

class JsonFields {
 public:
  // `prefix` stands before field names in messages ("rope_scaling."). All three must outlive this.
  JsonFields(const nlohmann::json& object, std::string prefix, std::vector<std::string>& problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  bool Has(const char* name) const { return Find(name) != nullptr; }

  // The field, or null when it is missing or JSON null.
  const nlohmann::json* Find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  // An integer in [low, high]. Without `fallback` the field must be there.
  int32_t Int(const char* name, int32_t low, int32_t high, std::optional<int32_t> fallback = {}) {
    const nlohmann::json* field = Find(name);
    if (field == nullptr) return Missing(name, fallback).value_or(low);
    const int64_t value = field->is_number_integer() ? ClampedInteger(*field) : low - int64_t{1};
    if (value >= low && value <= high) return static_cast<int32_t>(value);
    Problem(name, absl::StrCat("is ", JsonShown(*field), ", expected an integer in [", low, ", ",
                               high, "]"));
    return low;
  }

  // A number in [low, high].
  double Number(const char* name, double low, double high, std::optional<double> fallback = {}) {
    const nlohmann::json* field = Find(name);
    if (field == nullptr) return Missing(name, fallback).value_or(low);
    if (field->is_number()) {
      const double value = field->get<double>();
      if (value >= low && value <= high) return value;
    }
    Problem(name, absl::StrCat("is ", JsonShown(*field), ", expected a number in [", low, ", ",
                               high, "]"));
    return low;
  }

  bool Bool(const char* name, std::optional<bool> fallback = {}) {
    const nlohmann::json* field = Find(name);
    if (field == nullptr) return Missing(name, fallback).value_or(false);
    if (field->is_boolean()) return field->get<bool>();
    Problem(name, absl::StrCat("is ", JsonShown(*field), ", expected true or false"));
    return false;
  }

  // One of `allowed`; the first of them when the field is not.
  std::string Choice(const char* name, const std::vector<std::string>& allowed,
                     std::optional<std::string> fallback = {}) {
    const nlohmann::json* field = Find(name);
    if (field == nullptr) return Missing(name, fallback).value_or(allowed.front());
    for (const std::string& choice : allowed) {
      if (field->is_string() && field->get_ref<const std::string&>() == choice) return choice;
    }
    Problem(name,
            absl::StrCat("is ", JsonShown(*field), ", supported: ", absl::StrJoin(allowed, ", ")));
    return allowed.front();
  }

  // A token id or an array of them, each in [0, vocab_size).
  std::vector<TokenId> TokenIds(const char* name, int32_t vocab_size) {
    std::vector<TokenId> ids;
    const nlohmann::json* field = Find(name);
    if (field == nullptr) return ids;
    const auto add = [&](const nlohmann::json& id) {
      const int64_t value = id.is_number_integer() ? ClampedInteger(id) : -1;
      if (value >= 0 && value < vocab_size) {
        ids.push_back(static_cast<TokenId>(value));
      } else {
        Problem(name, absl::StrCat("holds ", JsonShown(id), ", expected token ids in [0, ",
                                   vocab_size, ")"));
      }
    };
    if (field->is_array()) {
      for (const nlohmann::json& id : *field) add(id);
    } else {
      add(*field);
    }
    return ids;
  }

  void Problem(const char* name, const std::string& text) {
    problems_.push_back(absl::StrCat(prefix_, name, " ", text));
  }

 private:
  template <typename T>
  std::optional<T> Missing(const char* name, const std::optional<T>& fallback) {
    if (!fallback.has_value()) Problem(name, "is missing");
    return fallback;
  }

  static int64_t ClampedInteger(const nlohmann::json& value) {
    if (value.is_number_unsigned() &&
        value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return std::numeric_limits<int64_t>::max();
    }
    return value.get<int64_t>();
  }

  const nlohmann::json& object_;
  const std::string prefix_;
  std::vector<std::string>& problems_;
};

// OK without problems; else INVALID_ARGUMENT that lists all of them, one a line (at most 50).
inline absl::Status ProblemsToStatus(const std::string& source,
                                     const std::vector<std::string>& problems) {
  if (problems.empty()) return absl::OkStatus();
  constexpr size_t kShown = 50;
  const size_t shown = std::min(problems.size(), kShown);
  std::string text =
      absl::StrCat(source, ": ", problems.size(), problems.size() == 1 ? " problem" : " problems");
  for (size_t i = 0; i < shown; ++i) absl::StrAppend(&text, "\n  ", problems[i]);
  if (shown < problems.size())
    absl::StrAppend(&text, "\n  ... and ", problems.size() - shown, " more");
  return absl::InvalidArgumentError(text);
}

}  // namespace baton::model

#endif  // BATON_MODEL_JSON_FIELDS_H_
