#ifndef BATON_MODEL_CHAT_TEMPLATE_VALUE_H_
#define BATON_MODEL_CHAT_TEMPLATE_VALUE_H_

// The values of a chat template, with Python's meaning: what they compare to, how they print, what
// is true. Cheap to copy; strings and containers are shared and never change, but for a namespace's
// attributes. Internal to the chat template.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton::model::jinja {

class Value;
struct MacroNode;

struct Undefined {
  std::string name;  // what was looked up, for messages
};
struct None {};

using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in order of insertion, unique keys

// The result of namespace(): the only value that a template can change.
struct Namespace {
  Dict attributes;
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None none) : data_(none) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  Value(const char*) = delete;  // would silently become a bool
  Value(const MacroNode* macro) : data_(macro) {}
  explicit Value(std::shared_ptr<Namespace> space) : data_(std::move(space)) {}

  // INVALID_ARGUMENT for a nesting of more than kMaxDepth containers, or a namespace inside one:
  // either could make a value that cannot be destroyed.
  static absl::StatusOr<Value> MakeList(List items);
  static absl::StatusOr<Value> MakeDict(Dict items);

  // Parses JSON text into a value. INVALID_ARGUMENT if it is not valid, or nested too deeply.
  static absl::StatusOr<Value> FromJson(std::string_view text);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_string() const { return std::holds_alternative<Text>(data_); }
  bool is_list() const { return std::holds_alternative<Items>(data_); }
  bool is_dict() const { return std::holds_alternative<Members>(data_); }
  bool is_namespace() const { return std::holds_alternative<std::shared_ptr<Namespace>>(data_); }
  bool is_macro() const { return std::holds_alternative<const MacroNode*>(data_); }

  // The caller has checked the kind.
  const std::string& string() const { return *std::get<Text>(data_); }
  const List& list() const { return std::get<Items>(data_)->items; }
  const Dict& dict() const { return std::get<Members>(data_)->items; }
  Namespace& space() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const MacroNode* macro() const { return std::get<const MacroNode*>(data_); }
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }
  int64_t integer() const { return is_bool() ? std::get<bool>(data_) : std::get<int64_t>(data_); }
  double number() const {
    return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
  }

  // Python's bool(value).
  bool Truthy() const;

  // Python's ==.
  bool Equals(const Value& other) const;

  // The kind in a template author's words, for messages.
  std::string KindName() const;

  // Python's str(value). UNIMPLEMENTED for containers, whose Python spelling no prompt should
  // depend on.
  absl::StatusOr<std::string> ToText() const;

  // Python's json.dumps(value, ensure_ascii=ensure_ascii, indent=indent); no indent: one line.
  absl::StatusOr<std::string> ToJson(bool ensure_ascii, std::optional<int> indent) const;

  // Containers nested in this value, itself included; 0 for scalars.
  int depth() const;

  static constexpr int kMaxDepth = 64;

 private:
  template <typename T>
  struct Container {
    T items;
    int depth;
  };
  using Text = std::shared_ptr<const std::string>;
  using Items = std::shared_ptr<const Container<List>>;
  using Members = std::shared_ptr<const Container<Dict>>;

  absl::Status AppendJson(bool ensure_ascii, std::optional<int> indent, int level,
                          std::string& out) const;

  std::variant<Undefined, None, bool, int64_t, double, Text, Items, Members,
               std::shared_ptr<Namespace>, const MacroNode*>
      data_;
};

// The member `key`, or null.
const Value* FindMember(const Dict& dict, std::string_view key);

// Strings are sequences of code points, as in Python. Byte offsets of each character, and the
// length at the end.
std::vector<size_t> CharacterOffsets(std::string_view text);

// Python's str.isspace for one code point.
bool IsPythonSpace(uint32_t code_point);

// Python's str.strip: `chars` empty means white space.
std::string_view Strip(std::string_view text, bool left, bool right,
                       std::optional<std::string_view> chars);

}  // namespace baton::model::jinja

#endif  // BATON_MODEL_CHAT_TEMPLATE_VALUE_H_
