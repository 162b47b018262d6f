#include <algorithm>
#include <functional>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_syntax.h"
#include "model/tokenizer_utf8.h"

namespace baton::model::jinja {
namespace {

constexpr size_t kMaxStringBytes = size_t{64} << 20;

// Argument `index`, or the one of that name; null if the call has neither.
const Value* Find(const Arguments& arguments, size_t index, std::string_view name) {
  if (index < arguments.positional.size()) return &arguments.positional[index];
  for (const auto& [key, value] : arguments.named) {
    if (key == name) return &value;
  }
  return nullptr;
}

// INVALID_ARGUMENT for more positional arguments than `names`, or names outside of it.
absl::Status ExpectArguments(const std::string& callee, const Arguments& arguments,
                             std::initializer_list<std::string_view> names) {
  if (arguments.positional.size() > names.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        callee, " takes at most ", names.size(), " arguments, not ", arguments.positional.size()));
  }
  for (const auto& [name, value] : arguments.named) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    return absl::UnimplementedError(
        absl::StrCat("the argument '", name, "' of ", callee, " is not supported"));
  }
  return absl::OkStatus();
}

// An argument that must be a string; none if it is missing or None.
absl::StatusOr<std::optional<std::string>> StringArgument(const Arguments& arguments, size_t index,
                                                          std::string_view name) {
  const Value* value = Find(arguments, index, name);
  if (value == nullptr || value->is_none()) return std::nullopt;
  if (!value->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("the argument '", std::string(name), "' is ",
                                                   value->KindName(), ", expected a string"));
  }
  return value->string();
}

absl::StatusOr<int64_t> IntArgument(const Arguments& arguments, size_t index, std::string_view name,
                                    int64_t fallback) {
  const Value* value = Find(arguments, index, name);
  if (value == nullptr || value->is_none()) return fallback;
  if (!value->is_int() && !value->is_bool()) {
    return absl::InvalidArgumentError(absl::StrCat("the argument '", std::string(name), "' is ",
                                                   value->KindName(), ", expected an integer"));
  }
  return value->integer();
}

absl::StatusOr<Value> Cased(const std::string& text, bool upper) {
  if (std::any_of(text.begin(), text.end(),
                  [](char c) { return static_cast<uint8_t>(c) >= 0x80; })) {
    return absl::UnimplementedError("upper and lower of text that is not ASCII are not supported");
  }
  return Value(upper ? absl::AsciiStrToUpper(text) : absl::AsciiStrToLower(text));
}

// Python's str.split.
absl::StatusOr<Value> SplitText(std::string_view text, const std::optional<std::string>& separator,
                                int64_t limit) {
  List parts;
  const auto more = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
  if (separator) {
    if (separator->empty()) return absl::InvalidArgumentError("split by an empty string");
    for (size_t at = text.find(*separator); at != std::string_view::npos && more();
         at = text.find(*separator)) {
      parts.push_back(Value(std::string(text.substr(0, at))));
      text.remove_prefix(at + separator->size());
    }
    parts.push_back(Value(std::string(text)));
    return Value::MakeList(std::move(parts));
  }
  for (text = Strip(text, true, false, std::nullopt); !text.empty();) {
    size_t end = text.size();
    if (more()) {
      for (end = 0; end < text.size();) {
        const Utf8Step step = DecodeUtf8(text.substr(end));
        if (IsPythonSpace(step.code_point)) break;
        end += step.bytes;
      }
    }
    parts.push_back(Value(std::string(text.substr(0, end))));
    text = Strip(text.substr(end), true, false, std::nullopt);
  }
  return Value::MakeList(std::move(parts));
}

absl::StatusOr<Value> ReplaceText(std::string_view text, const std::string& from,
                                  const std::string& to, int64_t count) {
  if (from.empty()) return absl::UnimplementedError("replace of an empty string is not supported");
  std::string out;
  while (count != 0) {
    const size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    if (count > 0) --count;
    if (out.size() > kMaxStringBytes)
      return absl::ResourceExhaustedError("replace makes a string of over 64 MiB");
  }
  return Value(out.append(text));
}

absl::StatusOr<Value> Replace(const std::string& text, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("replace", arguments, {"old", "new", "count"}));
  BATON_ASSIGN_OR_RETURN(const auto from, StringArgument(arguments, 0, "old"));
  BATON_ASSIGN_OR_RETURN(const auto to, StringArgument(arguments, 1, "new"));
  BATON_ASSIGN_OR_RETURN(const int64_t count, IntArgument(arguments, 2, "count", -1));
  if (!from || !to) return absl::InvalidArgumentError("replace takes the old and the new string");
  return ReplaceText(text, *from, *to, count);
}

// ---- Filters. The input may be of any kind. ----

using Filter = std::function<absl::StatusOr<Value>(const Value& input, const Arguments& arguments)>;

absl::StatusOr<Value> ToJsonFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("tojson", arguments, {"ensure_ascii", "indent"}));
  const Value* ensure_ascii = Find(arguments, 0, "ensure_ascii");
  const Value* indent_value = Find(arguments, 1, "indent");
  std::optional<int> indent;
  if (indent_value != nullptr && !indent_value->is_none()) {
    BATON_ASSIGN_OR_RETURN(const int64_t spaces, IntArgument(arguments, 1, "indent", 0));
    if (spaces < 0 || spaces > 16)
      return absl::InvalidArgumentError("tojson's indent is outside of [0, 16]");
    indent = static_cast<int>(spaces);
  }
  BATON_ASSIGN_OR_RETURN(std::string text,
                         input.ToJson(ensure_ascii != nullptr && ensure_ascii->Truthy(), indent));
  return Value(std::move(text));
}

absl::StatusOr<Value> LengthFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("length", arguments, {}));
  if (input.is_undefined()) return Value(int64_t{0});
  if (input.is_string())
    return Value(static_cast<int64_t>(CharacterOffsets(input.string()).size() - 1));
  if (input.is_list()) return Value(static_cast<int64_t>(input.list().size()));
  if (input.is_dict()) return Value(static_cast<int64_t>(input.dict().size()));
  return absl::InvalidArgumentError(absl::StrCat("length of ", input.KindName()));
}

absl::StatusOr<Value> JoinFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("join", arguments, {"d"}));
  BATON_ASSIGN_OR_RETURN(const auto glue, StringArgument(arguments, 0, "d"));
  BATON_ASSIGN_OR_RETURN(const List items, Iterate(input));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    BATON_ASSIGN_OR_RETURN(const std::string text, items[i].ToText());
    if (i > 0) out += glue.value_or("");
    out += text;
    if (out.size() > kMaxStringBytes)
      return absl::ResourceExhaustedError("join makes a string of over 64 MiB");
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> DefaultFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("default", arguments, {"default_value", "boolean"}));
  const Value* boolean = Find(arguments, 1, "boolean");
  const bool falsy_too = boolean != nullptr && boolean->Truthy();
  if (!input.is_undefined() && !(falsy_too && !input.Truthy())) return input;
  const Value* fallback = Find(arguments, 0, "default_value");
  return fallback != nullptr ? *fallback : Value(std::string());
}

absl::StatusOr<Value> EndFilter(const Value& input, bool first) {
  BATON_ASSIGN_OR_RETURN(const List items, Iterate(input));
  if (items.empty()) return Value(Undefined{first ? "first of nothing" : "last of nothing"});
  return first ? items.front() : items.back();
}

absl::StatusOr<Value> ReverseFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("reverse", arguments, {}));
  BATON_ASSIGN_OR_RETURN(List items, Iterate(input));
  std::reverse(items.begin(), items.end());
  if (!input.is_string()) return Value::MakeList(std::move(items));
  std::string out;
  for (const Value& item : items) out += item.string();
  return Value(std::move(out));
}

absl::StatusOr<Value> ItemsOf(const Value& input) {
  List pairs;
  for (const auto& [key, value] : input.dict()) {
    BATON_ASSIGN_OR_RETURN(Value pair, Value::MakeList({Value(key), value}));
    pairs.push_back(std::move(pair));
  }
  return Value::MakeList(std::move(pairs));
}

absl::StatusOr<Value> TrimFilter(const Value& input, const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments("trim", arguments, {"chars"}));
  BATON_ASSIGN_OR_RETURN(const std::string text, input.ToText());
  BATON_ASSIGN_OR_RETURN(const auto chars, StringArgument(arguments, 0, "chars"));
  return Value(std::string(Strip(text, true, true, chars)));
}

absl::StatusOr<Value> CaseFilter(const Value& input, const Arguments& arguments, bool upper) {
  BATON_RETURN_IF_ERROR(ExpectArguments("upper and lower", arguments, {}));
  BATON_ASSIGN_OR_RETURN(const std::string text, input.ToText());
  return Cased(text, upper);
}

const std::map<std::string, Filter>& Filters() {
  static const std::map<std::string, Filter>& filters = *new std::map<std::string, Filter>{
      {"trim", TrimFilter},
      {"length", LengthFilter},
      {"count", LengthFilter},
      {"tojson", ToJsonFilter},
      {"join", JoinFilter},
      {"default", DefaultFilter},
      {"d", DefaultFilter},
      {"reverse", ReverseFilter},
      {"upper", [](const Value& v, const Arguments& a) { return CaseFilter(v, a, true); }},
      {"lower", [](const Value& v, const Arguments& a) { return CaseFilter(v, a, false); }},
      {"first", [](const Value& v, const Arguments&) { return EndFilter(v, true); }},
      {"last", [](const Value& v, const Arguments&) { return EndFilter(v, false); }},
      {"safe", [](const Value& v, const Arguments&) -> absl::StatusOr<Value> { return v; }},
      {"string",
       [](const Value& v, const Arguments&) -> absl::StatusOr<Value> {
         BATON_ASSIGN_OR_RETURN(std::string text, v.ToText());
         return Value(std::move(text));
       }},
      {"list",
       [](const Value& v, const Arguments&) -> absl::StatusOr<Value> {
         BATON_ASSIGN_OR_RETURN(List items, Iterate(v));
         return Value::MakeList(std::move(items));
       }},
      {"items",
       [](const Value& v, const Arguments&) -> absl::StatusOr<Value> {
         if (v.is_undefined()) return Value::MakeList({});
         if (!v.is_dict())
           return absl::InvalidArgumentError(absl::StrCat("items of ", v.KindName()));
         return ItemsOf(v);
       }},
      {"replace",
       [](const Value& v, const Arguments& a) -> absl::StatusOr<Value> {
         BATON_ASSIGN_OR_RETURN(const std::string text, v.ToText());
         return Replace(text, a);
       }},
  };
  return filters;
}

// ---- Tests ----

const std::map<std::string, bool (*)(const Value&)>& Tests() {
  static const auto& tests = *new std::map<std::string, bool (*)(const Value&)>{
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"boolean", [](const Value& v) { return v.is_bool(); }},
      {"true", [](const Value& v) { return v.is_bool() && v.Truthy(); }},
      {"false", [](const Value& v) { return v.is_bool() && !v.Truthy(); }},
      {"integer", [](const Value& v) { return v.is_int(); }},
      {"float", [](const Value& v) { return v.is_float(); }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"string", [](const Value& v) { return v.is_string(); }},
      {"mapping", [](const Value& v) { return v.is_dict(); }},
      {"sequence",
       [](const Value& v) {
         return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined();
       }},
      {"iterable",
       [](const Value& v) {
         return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined();
       }},
  };
  return tests;
}

// ---- Methods ----

absl::StatusOr<Value> StripMethod(const std::string& text, const std::string& name,
                                  const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {"chars"}));
  BATON_ASSIGN_OR_RETURN(const auto chars, StringArgument(arguments, 0, "chars"));
  return Value(std::string(Strip(text, name != "rstrip", name != "lstrip", chars)));
}

// startswith and endswith; the affix may be a tuple.
absl::StatusOr<Value> AffixMethod(const std::string& text, const std::string& name,
                                  const Arguments& arguments) {
  BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {"affix"}));
  if (arguments.positional.size() != 1)
    return absl::InvalidArgumentError(absl::StrCat(name, " takes one argument"));
  const Value& affix = arguments.positional[0];
  const List options = affix.is_list() ? affix.list() : List{affix};
  bool matches = false;
  for (const Value& option : options) {
    if (!option.is_string())
      return absl::InvalidArgumentError(absl::StrCat(name, " of ", option.KindName()));
    matches |=
        name == "startswith" ? text.starts_with(option.string()) : text.ends_with(option.string());
  }
  return Value(matches);
}

absl::StatusOr<Value> CallStringMethod(const Value& object, const std::string& name,
                                       const Arguments& arguments) {
  const std::string& text = object.string();
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return StripMethod(text, name, arguments);
  if (name == "startswith" || name == "endswith") return AffixMethod(text, name, arguments);
  if (name == "replace") return Replace(text, arguments);
  if (name == "upper" || name == "lower") {
    BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {}));
    return Cased(text, name == "upper");
  }
  if (name == "join") {
    if (arguments.positional.size() != 1)
      return absl::InvalidArgumentError("join takes one argument");
    return JoinFilter(arguments.positional[0], {{object}, {}});
  }
  if (name == "split") {
    BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {"sep", "maxsplit"}));
    BATON_ASSIGN_OR_RETURN(const auto separator, StringArgument(arguments, 0, "sep"));
    BATON_ASSIGN_OR_RETURN(const int64_t limit, IntArgument(arguments, 1, "maxsplit", -1));
    return SplitText(text, separator, limit);
  }
  return absl::UnimplementedError(
      absl::StrCat("the method '", name, "' of a string is not supported"));
}

absl::StatusOr<Value> CallDictMethod(const Value& object, const std::string& name,
                                     const Arguments& arguments) {
  if (name == "get") {
    BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {"key", "default"}));
    BATON_ASSIGN_OR_RETURN(const auto key, StringArgument(arguments, 0, "key"));
    const Value* found = key ? FindMember(object.dict(), *key) : nullptr;
    const Value* fallback = Find(arguments, 1, "default");
    return found != nullptr ? *found : fallback != nullptr ? *fallback : Value(None());
  }
  if (name == "items" || name == "keys" || name == "values") {
    BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {}));
    if (name == "items") return ItemsOf(object);
    List list;
    for (const auto& [key, value] : object.dict())
      list.push_back(name == "keys" ? Value(key) : value);
    return Value::MakeList(std::move(list));
  }
  return absl::UnimplementedError(
      absl::StrCat("the method '", name, "' of an object is not supported"));
}

}  // namespace

absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& input,
                                  const Arguments& arguments) {
  const auto it = Filters().find(name);
  if (it == Filters().end())
    return absl::UnimplementedError(absl::StrCat("the filter '", name, "' is not supported"));
  return it->second(input, arguments);
}

absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& input,
                               const Arguments& arguments) {
  if (name == "in" || name == "eq" || name == "equalto" || name == "ne") {
    if (arguments.positional.size() != 1)
      return absl::InvalidArgumentError(absl::StrCat(name, " takes one argument"));
    if (name == "in") return Contains(arguments.positional[0], input);
    return input.Equals(arguments.positional[0]) == (name != "ne");
  }
  const auto it = Tests().find(name);
  if (it == Tests().end())
    return absl::UnimplementedError(absl::StrCat("the test '", name, "' is not supported"));
  BATON_RETURN_IF_ERROR(ExpectArguments(name, arguments, {}));
  return it->second(input);
}

absl::StatusOr<Value> CallMethod(const Value& object, const std::string& name,
                                 const Arguments& arguments) {
  if (object.is_string()) return CallStringMethod(object, name, arguments);
  if (object.is_dict()) return CallDictMethod(object, name, arguments);
  return absl::UnimplementedError(
      absl::StrCat("the method '", name, "' of ", object.KindName(), " is not supported"));
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  if (container.is_string() && item.is_string())
    return container.string().find(item.string()) != std::string::npos;
  if (container.is_dict())
    return item.is_string() && FindMember(container.dict(), item.string()) != nullptr;
  if (container.is_undefined()) return false;
  if (container.is_list()) {
    return std::any_of(container.list().begin(), container.list().end(),
                       [&](const Value& member) { return member.Equals(item); });
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'in' of ", item.KindName(), " and ", container.KindName()));
}

absl::StatusOr<List> Iterate(const Value& value) {
  if (value.is_undefined()) return List{};
  if (value.is_list()) return value.list();
  List items;
  if (value.is_dict()) {
    for (const auto& [key, member] : value.dict()) items.push_back(Value(key));
    return items;
  }
  if (value.is_string()) {
    const std::string& text = value.string();
    for (size_t at = 0; at < text.size();) {
      const size_t bytes = DecodeUtf8(std::string_view(text).substr(at)).bytes;
      items.push_back(Value(text.substr(at, bytes)));
      at += bytes;
    }
    return items;
  }
  return absl::InvalidArgumentError(absl::StrCat(value.KindName(), " cannot be walked over"));
}

}  // namespace baton::model::jinja
