#include "model/chat_template_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "model/tokenizer_utf8.h"
#include "nlohmann/json.hpp"

namespace baton::model::jinja {
namespace {

absl::Status CheckDepth(int depth) {
  if (depth <= Value::kMaxDepth) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("lists and objects nest ", depth, " deep, expected at most ", Value::kMaxDepth));
}

absl::Status CheckMember(const Value& value) {
  if (!value.is_namespace()) return absl::OkStatus();
  return absl::UnimplementedError(
      "a namespace inside a list, an object or a namespace is not supported");
}

// `depth` containers may still open.
absl::StatusOr<Value> Convert(const nlohmann::ordered_json& json, int depth) {
  if (json.is_null()) return Value(None());
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the integer ", json.get<uint64_t>(), " is above 2^63 - 1"));
  }
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number_float()) return Value(json.get<double>());
  if (json.is_string()) return Value(json.get<std::string>());
  if (depth == 0) return CheckDepth(Value::kMaxDepth + 1);
  if (json.is_array()) {
    List items;
    for (const nlohmann::ordered_json& item : json) {
      BATON_ASSIGN_OR_RETURN(Value value, Convert(item, depth - 1));
      items.push_back(std::move(value));
    }
    return Value::MakeList(std::move(items));
  }
  Dict items;
  for (const auto& [key, item] : json.items()) {
    BATON_ASSIGN_OR_RETURN(Value value, Convert(item, depth - 1));
    items.emplace_back(key, std::move(value));
  }
  return Value::MakeDict(std::move(items));
}

// Python's repr of a float: the shortest digits that read back, in positional form for exponents -4
// to 15.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 512> buffer;
  const auto scientific =
      std::to_chars(buffer.begin(), buffer.end(), value, std::chars_format::scientific);
  const std::string text(buffer.begin(), scientific.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed = std::to_chars(buffer.begin(), buffer.end(), value, std::chars_format::fixed);
  std::string positional(buffer.begin(), fixed.ptr);
  if (positional.find('.') == std::string::npos) positional += ".0";
  return positional;
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string& out) {
  out.push_back('"');
  while (!text.empty()) {
    const Utf8Step step = DecodeUtf8(text);
    const uint32_t c = step.code_point;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
          absl::StrAppendFormat(&out, "\\u%04x", c);
        } else if (ensure_ascii && c >= 0x10000) {
          absl::StrAppendFormat(&out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                                0xDC00 + (c & 0x3FF));
        } else {
          out += text.substr(0, step.bytes);
        }
    }
    text.remove_prefix(step.bytes);
  }
  out.push_back('"');
}

}  // namespace

absl::StatusOr<Value> Value::MakeList(List items) {
  int depth = 0;
  for (const Value& item : items) {
    BATON_RETURN_IF_ERROR(CheckMember(item));
    depth = std::max(depth, item.depth());
  }
  BATON_RETURN_IF_ERROR(CheckDepth(depth + 1));
  Value value;
  value.data_ =
      std::make_shared<const Container<List>>(Container<List>{std::move(items), depth + 1});
  return value;
}

absl::StatusOr<Value> Value::MakeDict(Dict items) {
  int depth = 0;
  for (const auto& [key, item] : items) {
    BATON_RETURN_IF_ERROR(CheckMember(item));
    depth = std::max(depth, item.depth());
  }
  BATON_RETURN_IF_ERROR(CheckDepth(depth + 1));
  Value value;
  value.data_ =
      std::make_shared<const Container<Dict>>(Container<Dict>{std::move(items), depth + 1});
  return value;
}

absl::StatusOr<Value> Value::FromJson(std::string_view text) {
  const auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("the variables are no valid JSON");
  return Convert(json, kMaxDepth);
}

int Value::depth() const {
  if (is_list()) return std::get<Items>(data_)->depth;
  if (is_dict()) return std::get<Members>(data_)->depth;
  return 0;
}

bool Value::Truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !list().empty();
  if (is_dict()) return !dict().empty();
  return true;
}

bool Value::Equals(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_float() || other.is_float()) return number() == other.number();
    return integer() == other.integer();
  }
  if (data_.index() != other.data_.index()) return false;
  if (is_undefined() || is_none()) return true;
  if (is_string()) return string() == other.string();
  if (is_list()) {
    return std::equal(list().begin(), list().end(), other.list().begin(), other.list().end(),
                      [](const Value& a, const Value& b) { return a.Equals(b); });
  }
  if (is_dict()) {
    if (dict().size() != other.dict().size()) return false;
    return std::all_of(dict().begin(), dict().end(), [&](const auto& member) {
      const Value* twin = FindMember(other.dict(), member.first);
      return twin != nullptr && member.second.Equals(*twin);
    });
  }
  if (is_namespace()) return &space() == &other.space();
  return macro() == other.macro();
}

std::string Value::KindName() const {
  static constexpr const char* kNames[] = {
      "an undefined value", "none",   "a boolean", "an integer",  "a float",
      "a string",           "a list", "an object", "a namespace", "a macro"};
  if (is_undefined()) return absl::StrCat("the undefined '", undefined_name(), "'");
  return kNames[data_.index()];
}

absl::StatusOr<std::string> Value::ToText() const {
  if (is_string()) return string();
  if (is_undefined()) return std::string();
  if (is_none()) return std::string("None");
  if (is_bool()) return std::string(integer() != 0 ? "True" : "False");
  if (is_int()) return absl::StrCat(integer());
  if (is_float()) return FloatText(number());
  return absl::UnimplementedError(
      absl::StrCat("printing ", KindName(), " is not supported (tojson prints lists and objects)"));
}

absl::StatusOr<std::string> Value::ToJson(bool ensure_ascii, std::optional<int> indent) const {
  std::string out;
  BATON_RETURN_IF_ERROR(AppendJson(ensure_ascii, indent, 0, out));
  return out;
}

absl::Status Value::AppendJson(bool ensure_ascii, std::optional<int> indent, int level,
                               std::string& out) const {
  const auto newline = [&](int at) {
    if (indent) out.append("\n").append(static_cast<size_t>(*indent * at), ' ');
  };
  const char* comma = indent ? "," : ", ";
  if (is_string()) {
    AppendJsonString(string(), ensure_ascii, out);
  } else if (is_none()) {
    out += "null";
  } else if (is_bool()) {
    out += integer() != 0 ? "true" : "false";
  } else if (is_float() && !std::isfinite(number())) {
    out += std::isnan(number()) ? "NaN" : number() > 0 ? "Infinity" : "-Infinity";
  } else if (is_number()) {
    BATON_ASSIGN_OR_RETURN(const std::string text, ToText());
    out += text;
  } else if (is_list()) {
    out.push_back('[');
    for (size_t i = 0; i < list().size(); ++i) {
      if (i > 0) out += comma;
      newline(level + 1);
      BATON_RETURN_IF_ERROR(list()[i].AppendJson(ensure_ascii, indent, level + 1, out));
    }
    if (!list().empty()) newline(level);
    out.push_back(']');
  } else if (is_dict()) {
    out.push_back('{');
    for (size_t i = 0; i < dict().size(); ++i) {
      if (i > 0) out += comma;
      newline(level + 1);
      AppendJsonString(dict()[i].first, ensure_ascii, out);
      out += ": ";
      BATON_RETURN_IF_ERROR(dict()[i].second.AppendJson(ensure_ascii, indent, level + 1, out));
    }
    if (!dict().empty()) newline(level);
    out.push_back('}');
  } else {
    return absl::InvalidArgumentError(absl::StrCat("tojson cannot print ", KindName()));
  }
  return absl::OkStatus();
}

const Value* FindMember(const Dict& dict, std::string_view key) {
  const auto it = std::find_if(dict.begin(), dict.end(),
                               [&](const auto& member) { return member.first == key; });
  return it == dict.end() ? nullptr : &it->second;
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += DecodeUtf8(text.substr(at)).bytes)
    offsets.push_back(at);
  offsets.push_back(text.size());
  return offsets;
}

bool IsPythonSpace(uint32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

std::string_view Strip(std::string_view text, bool left, bool right,
                       std::optional<std::string_view> chars) {
  const auto strips = [&](std::string_view character) {
    return chars ? chars->find(character) != std::string_view::npos
                 : IsPythonSpace(DecodeUtf8(character).code_point);
  };
  while (left && !text.empty()) {
    const std::string_view first = text.substr(0, DecodeUtf8(text).bytes);
    if (!strips(first)) break;
    text.remove_prefix(first.size());
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!strips(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

}  // namespace baton::model::jinja
