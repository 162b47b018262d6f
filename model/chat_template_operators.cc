// Arithmetic, comparison, indices and slices of a chat template's values, as Python does them.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_syntax.h"

namespace baton::model::jinja {

Value ItemAt(const Value& object, int64_t index) {
  const std::vector<size_t> offsets =
      object.is_string() ? CharacterOffsets(object.string()) : std::vector<size_t>();
  const auto count =
      static_cast<int64_t>(object.is_string() ? offsets.size() - 1 : object.list().size());
  if (index < 0) index += count;
  if (index < 0 || index >= count) return Value(Undefined{"an index out of range"});
  const auto i = static_cast<size_t>(index);
  if (object.is_list()) return object.list()[i];
  return Value(object.string().substr(offsets[i], offsets[i + 1] - offsets[i]));
}

absl::StatusOr<Value> Slice(const Value& object, std::optional<int64_t> first,
                            std::optional<int64_t> last, std::optional<int64_t> by) {
  if (!object.is_list() && !object.is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("a slice of ", object.KindName()));
  }
  BATON_ASSIGN_OR_RETURN(const List items, Iterate(object));
  const int64_t count = static_cast<int64_t>(items.size()), step = by.value_or(1);
  if (step == 0) return absl::InvalidArgumentError("a slice with step 0");
  // Python's slice.indices: negative bounds count from the end, then all are clamped.
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
  const auto clamp = [&](std::optional<int64_t> bound, int64_t fallback) {
    if (!bound) return fallback;
    const int64_t value = *bound < 0 ? std::max(*bound, -count - 1) + count : *bound;
    return std::max(low, std::min(high, value));
  };
  const int64_t start = clamp(first, step > 0 ? low : high),
                stop = clamp(last, step > 0 ? high : low);
  List kept;
  const int64_t stride = std::max(-count - 1, std::min(count + 1, step));
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += stride) {
    kept.push_back(items[static_cast<size_t>(i)]);
  }
  if (object.is_list()) return Value::MakeList(std::move(kept));
  std::string text;
  for (const Value& character : kept) text += character.string();
  return Value(std::move(text));
}

absl::StatusOr<Value> Arithmetic(const std::string& op, const Value& left, const Value& right) {
  if (!left.is_number() || !right.is_number()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot compute ", left.KindName(), " ", op, " ", right.KindName()));
  }
  if (op != "+" && op != "-" && op != "*" && right.number() == 0)
    return absl::InvalidArgumentError("a division by zero");
  if (op == "/" || left.is_float() || right.is_float()) {
    const double a = left.number(), b = right.number();
    if (op == "+") return Value(a + b);
    if (op == "-") return Value(a - b);
    if (op == "*") return Value(a * b);
    if (op == "/") return Value(a / b);
    if (op == "//") return Value(std::floor(a / b));
    return Value(a - b * std::floor(a / b));
  }
  const int64_t a = left.integer(), b = right.integer();
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (b == -1 && a == std::numeric_limits<int64_t>::min()) {
    overflow = true;
  } else {  // both round towards minus infinity
    const bool adjust = a % b != 0 && (a < 0) != (b < 0);
    result = op == "//" ? a / b - (adjust ? 1 : 0) : a % b + (adjust ? b : 0);
  }
  if (overflow)
    return absl::InvalidArgumentError(
        absl::StrCat("an integer outside of 64 bits in ", a, " ", op, " ", b));
  return Value(result);
}

absl::StatusOr<bool> Compare(const std::string& op, const Value& left, const Value& right) {
  if (op == "==") return left.Equals(right);
  if (op == "!=") return !left.Equals(right);
  if (op == "in" || op == "not in") {
    const absl::StatusOr<bool> contains = Contains(right, left);
    if (!contains.ok()) return contains.status();
    return *contains == (op == "in");
  }
  const bool strings = left.is_string() && right.is_string();
  if (!strings && !(left.is_number() && right.is_number())) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot compare ", left.KindName(), " ", op, " ", right.KindName()));
  }
  const bool less = strings ? left.string() < right.string() : left.number() < right.number();
  const bool greater = strings ? right.string() < left.string() : right.number() < left.number();
  if (op == "<") return less;
  if (op == ">") return greater;
  return op == "<=" ? !greater : !less;
}

}  // namespace baton::model::jinja
