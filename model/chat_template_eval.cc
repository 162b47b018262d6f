#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template.h"
#include "model/chat_template_syntax.h"

namespace baton::model::jinja {
namespace {

constexpr int kMaxMacroDepth = 16;
constexpr size_t kBytesPerStep = 64;  // long strings and lists cost steps by their size

// Puts the line in front of an error of a builtin or an operator, which know none.
absl::Status AtLine(int line, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("chat template, line ", line, ": ", status.message()));
}

absl::StatusOr<Value> Located(int line, absl::StatusOr<Value> result) {
  if (!result.ok()) return AtLine(line, result.status());
  return result;
}

size_t SizeOf(const Value& value) {
  if (value.is_string()) return value.string().size();
  if (value.is_list()) return value.list().size() * sizeof(Value);
  if (value.is_dict()) return value.dict().size() * sizeof(Value);
  return 0;
}

class Renderer {
 public:
  Renderer(const Template& parsed, const Value& variables)
      : template_(parsed), variables_(variables.dict()) {}

  absl::StatusOr<std::string> Run() {
    frames_.emplace_back();
    std::string out;
    BATON_RETURN_IF_ERROR(Execute(template_.body, out));
    return out;
  }

 private:
  using Frame = Dict;  // the few names that one scope has set

  // ---- Bounds ----

  absl::Status Charge(int line, size_t bytes) {
    steps_ += 1 + static_cast<int64_t>(bytes / kBytesPerStep);
    if (steps_ <= ChatTemplate::kMaxSteps) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("chat template, line ", line,
                                                     ": rendering takes more than ",
                                                     ChatTemplate::kMaxSteps, " steps"));
  }

  absl::Status CheckSize(int line, size_t bytes) const {
    if (bytes <= ChatTemplate::kMaxOutputBytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("chat template, line ", line,
                                                     ": a text of more than ",
                                                     ChatTemplate::kMaxOutputBytes, " bytes"));
  }

  // ---- Names ----

  Value Lookup(const std::string& name) const {
    for (size_t i = frames_.size(); i > base_; --i) {
      if (const Value* value = FindMember(frames_[i - 1], name)) return *value;
    }
    if (const Value* value = FindMember(frames_[0], name)) return *value;
    if (const Value* value = FindMember(variables_, name)) return *value;
    return Value(Undefined{name});
  }

  static void Assign(Dict& frame, const std::string& name, Value value) {
    for (auto& [key, old] : frame) {
      if (key != name) continue;
      old = std::move(value);
      return;
    }
    frame.emplace_back(name, std::move(value));
  }

  // ---- Statements ----

  enum class Flow { kNext, kBreak, kContinue };

  absl::Status Execute(const Body& body, std::string& out) {
    for (const std::unique_ptr<Node>& node : body) {
      BATON_RETURN_IF_ERROR(Charge(node->line, node->text.size()));
      BATON_RETURN_IF_ERROR(ExecuteNode(*node, out));
      BATON_RETURN_IF_ERROR(CheckSize(node->line, out.size()));
      if (flow_ != Flow::kNext) return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status ExecuteNode(const Node& node, std::string& out) {
    switch (node.kind) {
      case NodeKind::kText:
        out += node.text;
        return absl::OkStatus();
      case NodeKind::kOutput: {
        BATON_ASSIGN_OR_RETURN(const Value value, Eval(*node.value));
        const absl::StatusOr<std::string> text = value.ToText();
        if (!text.ok()) return AtLine(node.line, text.status());
        out += *text;
        return Charge(node.line, text->size());
      }
      case NodeKind::kIf:
        for (const auto& [condition, body] : node.branches) {
          BATON_ASSIGN_OR_RETURN(const Value value, Eval(*condition));
          if (value.Truthy()) return Execute(body, out);
        }
        return Execute(node.otherwise, out);
      case NodeKind::kFor:
        return ExecuteFor(node, out);
      case NodeKind::kSet:
        return ExecuteSet(node);
      case NodeKind::kMacro:
        Assign(frames_.back(), node.macro.name, Value(&node.macro));
        return absl::OkStatus();
      case NodeKind::kBreak:
      case NodeKind::kContinue:
        flow_ = node.kind == NodeKind::kBreak ? Flow::kBreak : Flow::kContinue;
        return absl::OkStatus();
      case NodeKind::kGroup:
        return Execute(node.body, out);
    }
    return absl::OkStatus();
  }

  absl::Status ExecuteSet(const Node& node) {
    Value value;
    if (node.value != nullptr) {
      BATON_ASSIGN_OR_RETURN(value, Eval(*node.value));
    } else {
      std::string text;
      BATON_RETURN_IF_ERROR(Execute(node.body, text));
      value = Value(std::move(text));
    }
    if (node.attribute.empty()) {
      Assign(frames_.back(), node.targets[0], std::move(value));
      return absl::OkStatus();
    }
    const Value target = Lookup(node.targets[0]);
    if (!target.is_namespace()) {
      return InvalidAt(node.line, absl::StrCat("cannot set an attribute of ", target.KindName(),
                                               " '", node.targets[0], "', only of a namespace"));
    }
    if (value.is_namespace()) return UnsupportedAt(node.line, "a namespace inside a namespace");
    Assign(target.space().attributes, node.attribute, std::move(value));
    return absl::OkStatus();
  }

  // Binds the loop's names to `item` in the innermost frame.
  absl::Status Bind(const Node& node, const Value& item) {
    if (node.targets.size() == 1) {
      Assign(frames_.back(), node.targets[0], item);
      return absl::OkStatus();
    }
    if (!item.is_list() || item.list().size() != node.targets.size()) {
      return InvalidAt(node.line, absl::StrCat("cannot unpack ", item.KindName(), " into ",
                                               node.targets.size(), " names"));
    }
    for (size_t i = 0; i < node.targets.size(); ++i)
      Assign(frames_.back(), node.targets[i], item.list()[i]);
    return absl::OkStatus();
  }

  absl::StatusOr<List> LoopItems(const Node& node) {
    BATON_ASSIGN_OR_RETURN(const Value over, Eval(*node.value));
    BATON_RETURN_IF_ERROR(Charge(node.line, SizeOf(over)));
    absl::StatusOr<List> items = Iterate(over);
    if (!items.ok()) return AtLine(node.line, items.status());
    if (node.condition == nullptr) return items;
    List kept;
    frames_.emplace_back();
    for (const Value& item : *items) {
      BATON_RETURN_IF_ERROR(Bind(node, item));
      BATON_ASSIGN_OR_RETURN(const Value keep, Eval(*node.condition));
      if (keep.Truthy()) kept.push_back(item);
    }
    frames_.pop_back();
    return kept;
  }

  static absl::StatusOr<Value> LoopVariable(const List& items, size_t i) {
    const auto number = [](size_t n) { return Value(static_cast<int64_t>(n)); };
    const size_t count = items.size();
    Dict loop = {{"index", number(i + 1)},
                 {"index0", number(i)},
                 {"revindex", number(count - i)},
                 {"revindex0", number(count - i - 1)},
                 {"first", Value(i == 0)},
                 {"last", Value(i + 1 == count)},
                 {"length", number(count)},
                 {"previtem", Value(Undefined{"loop.previtem"})},
                 {"nextitem", Value(Undefined{"loop.nextitem"})}};
    if (i > 0) loop[7].second = items[i - 1];
    if (i + 1 < count) loop[8].second = items[i + 1];
    return Value::MakeDict(std::move(loop));
  }

  absl::Status ExecuteFor(const Node& node, std::string& out) {
    BATON_ASSIGN_OR_RETURN(const List items, LoopItems(node));
    if (items.empty()) return Execute(node.otherwise, out);
    for (size_t i = 0; i < items.size() && flow_ != Flow::kBreak; ++i) {
      BATON_RETURN_IF_ERROR(Charge(node.line, 0));
      flow_ = Flow::kNext;
      frames_.emplace_back();  // what one turn sets, the next does not see
      absl::StatusOr<Value> loop = LoopVariable(items, i);
      if (!loop.ok()) return AtLine(node.line, loop.status());
      Assign(frames_.back(), "loop", *std::move(loop));
      BATON_RETURN_IF_ERROR(Bind(node, items[i]));
      BATON_RETURN_IF_ERROR(Execute(node.body, out));
      frames_.pop_back();
    }
    flow_ = Flow::kNext;
    return absl::OkStatus();
  }

  // ---- Expressions ----

  absl::StatusOr<Value> Eval(const Expr& expr) {
    BATON_RETURN_IF_ERROR(Charge(expr.line, 0));
    switch (expr.kind) {
      case ExprKind::kLiteral:
        return expr.literal;
      case ExprKind::kName:
        return Lookup(expr.text);
      case ExprKind::kList:
      case ExprKind::kDict:
        return EvalContainer(expr);
      case ExprKind::kAttribute:
      case ExprKind::kItem:
        return EvalMember(expr);
      case ExprKind::kSlice:
        return EvalSlice(expr);
      case ExprKind::kCall:
        return EvalCall(expr);
      case ExprKind::kFilter:
      case ExprKind::kTest:
        return EvalFilterOrTest(expr);
      case ExprKind::kNegate: {
        BATON_ASSIGN_OR_RETURN(const Value value, Eval(*expr.kids[0]));
        if (value.is_float()) return Value(-value.number());
        if (!value.is_number())
          return InvalidAt(expr.line, absl::StrCat("the negative of ", value.KindName()));
        return Located(expr.line, Arithmetic("-", Value(int64_t{0}), value));
      }
      case ExprKind::kNot: {
        BATON_ASSIGN_OR_RETURN(const Value value, Eval(*expr.kids[0]));
        return Value(!value.Truthy());
      }
      case ExprKind::kAnd:
      case ExprKind::kOr: {
        BATON_ASSIGN_OR_RETURN(Value left, Eval(*expr.kids[0]));
        if (left.Truthy() == (expr.kind == ExprKind::kOr)) return left;
        return Eval(*expr.kids[1]);
      }
      case ExprKind::kBinary:
        return EvalBinary(expr);
      case ExprKind::kCompare:
        return EvalCompare(expr);
      case ExprKind::kConditional: {
        BATON_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.kids[1]));
        if (condition.Truthy()) return Eval(*expr.kids[0]);
        if (expr.kids[2] == nullptr) return Value(Undefined{"the missing else of a conditional"});
        return Eval(*expr.kids[2]);
      }
    }
    return Value();
  }

  absl::StatusOr<Value> EvalContainer(const Expr& expr) {
    List items;
    for (const ExprPtr& kid : expr.kids) {
      BATON_ASSIGN_OR_RETURN(Value item, Eval(*kid));
      items.push_back(std::move(item));
    }
    absl::StatusOr<Value> made;
    if (expr.kind == ExprKind::kList) {
      made = Value::MakeList(std::move(items));
    } else {
      Dict members;
      for (size_t i = 0; i < items.size(); i += 2) {
        if (!items[i].is_string())
          return UnsupportedAt(expr.line, absl::StrCat("a key that is ", items[i].KindName()));
        Assign(members, items[i].string(), items[i + 1]);
      }
      made = Value::MakeDict(std::move(members));
    }
    return Located(expr.line, std::move(made));
  }

  // object.name and object[key].
  absl::StatusOr<Value> EvalMember(const Expr& expr) {
    BATON_ASSIGN_OR_RETURN(const Value object, Eval(*expr.kids[0]));
    Value key(expr.text);
    if (expr.kind == ExprKind::kItem) {
      BATON_ASSIGN_OR_RETURN(key, Eval(*expr.kids[1]));
    }
    if (object.is_undefined()) {
      return InvalidAt(expr.line, absl::StrCat(object.KindName(), " has no members"));
    }
    const std::string name = key.is_string() ? key.string()
                             : key.is_int()  ? absl::StrCat(key.integer())
                                             : "a key";
    if (key.is_string() && (object.is_dict() || object.is_namespace())) {
      const Dict& dict = object.is_dict() ? object.dict() : object.space().attributes;
      if (const Value* member = FindMember(dict, key.string())) return *member;
    }
    if (key.is_int() && (object.is_list() || object.is_string())) {
      if (object.is_string()) BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(object)));
      return ItemAt(object, key.integer());
    }
    return Value(Undefined{name});
  }

  absl::StatusOr<Value> EvalSlice(const Expr& expr) {
    BATON_ASSIGN_OR_RETURN(const Value object, Eval(*expr.kids[0]));
    std::optional<int64_t> bounds[3];
    for (size_t i = 0; i < 3; ++i) {
      if (expr.kids[i + 1] == nullptr) continue;
      BATON_ASSIGN_OR_RETURN(const Value bound, Eval(*expr.kids[i + 1]));
      if (bound.is_none()) continue;
      if (!bound.is_int())
        return InvalidAt(expr.line, absl::StrCat("a slice bound that is ", bound.KindName()));
      bounds[i] = bound.integer();
    }
    BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(object)));
    return Located(expr.line, Slice(object, bounds[0], bounds[1], bounds[2]));
  }

  absl::StatusOr<Arguments> EvalArguments(const Expr& expr) {
    Arguments arguments;
    for (size_t i = 1; i < expr.kids.size(); ++i) {
      BATON_ASSIGN_OR_RETURN(Value value, Eval(*expr.kids[i]));
      arguments.positional.push_back(std::move(value));
    }
    for (const auto& [name, kid] : expr.keywords) {
      BATON_ASSIGN_OR_RETURN(Value value, Eval(*kid));
      arguments.named.emplace_back(name, std::move(value));
    }
    return arguments;
  }

  absl::StatusOr<Value> EvalFilterOrTest(const Expr& expr) {
    BATON_ASSIGN_OR_RETURN(const Value input, Eval(*expr.kids[0]));
    BATON_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
    BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(input)));
    if (expr.kind == ExprKind::kTest) {
      const absl::StatusOr<bool> result = ApplyTest(expr.text, input, arguments);
      if (!result.ok()) return AtLine(expr.line, result.status());
      return Value(*result);
    }
    BATON_ASSIGN_OR_RETURN(Value result,
                           Located(expr.line, ApplyFilter(expr.text, input, arguments)));
    BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(result)));
    return result;
  }

  absl::StatusOr<Value> EvalCall(const Expr& expr) {
    const Expr& callee = *expr.kids[0];
    if (callee.kind == ExprKind::kName) {
      const Value value = Lookup(callee.text);
      if (!value.is_macro() && !value.is_undefined()) {
        return InvalidAt(expr.line, absl::StrCat("'", callee.text, "' is ", value.KindName(),
                                                 ", not a function"));
      }
      BATON_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
      if (value.is_macro()) return CallMacro(expr.line, *value.macro(), arguments);
      return CallGlobal(expr.line, callee.text, arguments);
    }
    if (callee.kind != ExprKind::kAttribute)
      return UnsupportedAt(expr.line, "a call of something other than a name or a method");
    BATON_ASSIGN_OR_RETURN(const Value object, Eval(*callee.kids[0]));
    BATON_ASSIGN_OR_RETURN(const Arguments arguments, EvalArguments(expr));
    if (object.is_undefined())
      return InvalidAt(expr.line, absl::StrCat(object.KindName(), " has no members"));
    BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(object)));
    BATON_ASSIGN_OR_RETURN(Value result,
                           Located(expr.line, CallMethod(object, callee.text, arguments)));
    BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(result)));
    return result;
  }

  absl::StatusOr<Value> CallGlobal(int line, const std::string& name, const Arguments& arguments) {
    if (name == "raise_exception") {
      std::string message;
      if (!arguments.positional.empty()) {
        BATON_ASSIGN_OR_RETURN(message, arguments.positional[0].ToText());
      }
      return InvalidAt(line, absl::StrCat("the template refuses the conversation: ", message));
    }
    if (name != "namespace") return UnsupportedAt(line, absl::StrCat("the function '", name, "'"));
    if (!arguments.positional.empty())
      return UnsupportedAt(line, "a positional argument of namespace");
    auto space = std::make_shared<Namespace>();
    for (const auto& [key, value] : arguments.named) {
      if (value.is_namespace()) return UnsupportedAt(line, "a namespace inside a namespace");
      Assign(space->attributes, key, value);
    }
    return Value(std::move(space));
  }

  absl::StatusOr<Value> CallMacro(int line, const MacroNode& macro, const Arguments& arguments) {
    if (macro_depth_ == kMaxMacroDepth) {
      return absl::ResourceExhaustedError(absl::StrCat("chat template, line ", line,
                                                       ": macros call each other more than ",
                                                       kMaxMacroDepth, " deep"));
    }
    if (arguments.positional.size() > macro.parameters.size()) {
      return InvalidAt(line, absl::StrCat("the macro '", macro.name, "' takes at most ",
                                          macro.parameters.size(), " arguments"));
    }
    Frame frame;
    for (size_t i = 0; i < arguments.positional.size(); ++i)
      frame.emplace_back(macro.parameters[i].first, arguments.positional[i]);
    for (const auto& [name, value] : arguments.named) {
      const auto known = [&name = name](const auto& parameter) { return parameter.first == name; };
      if (FindMember(frame, name) != nullptr ||
          std::none_of(macro.parameters.begin(), macro.parameters.end(), known)) {
        return InvalidAt(line, absl::StrCat("the macro '", macro.name,
                                            "' takes no further argument '", name, "'"));
      }
      frame.emplace_back(name, value);
    }
    // The body sees its own names and the template's, not the caller's.
    const size_t caller_base = std::exchange(base_, frames_.size());
    frames_.push_back(std::move(frame));
    ++macro_depth_;
    std::string out;
    for (const auto& [name, fallback] : macro.parameters) {
      if (FindMember(frames_.back(), name) != nullptr) continue;
      Value value(Undefined{name});
      if (fallback != nullptr) {
        BATON_ASSIGN_OR_RETURN(value, Eval(*fallback));
      }
      Assign(frames_.back(), name, std::move(value));
    }
    BATON_RETURN_IF_ERROR(Execute(macro.body, out));
    --macro_depth_;
    frames_.pop_back();
    base_ = caller_base;
    return Value(std::move(out));
  }

  absl::StatusOr<Value> EvalBinary(const Expr& expr) {
    BATON_ASSIGN_OR_RETURN(const Value left, Eval(*expr.kids[0]));
    BATON_ASSIGN_OR_RETURN(const Value right, Eval(*expr.kids[1]));
    const std::string& op = expr.text;
    if (op == "~" || (op == "+" && left.is_string() && right.is_string())) {
      const absl::StatusOr<std::string> a = left.ToText(), b = right.ToText();
      if (!a.ok()) return AtLine(expr.line, a.status());
      if (!b.ok()) return AtLine(expr.line, b.status());
      BATON_RETURN_IF_ERROR(CheckSize(expr.line, a->size() + b->size()));
      BATON_RETURN_IF_ERROR(Charge(expr.line, a->size() + b->size()));
      return Value(*a + *b);
    }
    if (op == "+" && left.is_list() && right.is_list()) {
      BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(left) + SizeOf(right)));
      List items = left.list();
      items.insert(items.end(), right.list().begin(), right.list().end());
      return Value::MakeList(std::move(items));
    }
    return Located(expr.line, Arithmetic(op, left, right));
  }

  absl::StatusOr<Value> EvalCompare(const Expr& expr) {
    BATON_ASSIGN_OR_RETURN(Value left, Eval(*expr.kids[0]));
    for (size_t i = 0; i < expr.operators.size(); ++i) {
      BATON_ASSIGN_OR_RETURN(Value right, Eval(*expr.kids[i + 1]));
      BATON_RETURN_IF_ERROR(Charge(expr.line, SizeOf(left) + SizeOf(right)));
      const absl::StatusOr<bool> holds = Compare(expr.operators[i], left, right);
      if (!holds.ok()) return AtLine(expr.line, holds.status());
      if (!*holds) return Value(false);
      left = std::move(right);
    }
    return Value(true);
  }

  const Template& template_;
  const Dict& variables_;
  std::vector<Frame> frames_;  // [0] is the template's own
  size_t base_ = 0;            // names are sought in frames_[base_..], frames_[0] and the variables
  Flow flow_ = Flow::kNext;
  int macro_depth_ = 0;
  int64_t steps_ = 0;
};

}  // namespace

absl::StatusOr<std::string> Evaluate(const Template& parsed, const Value& variables) {
  return Renderer(parsed, variables).Run();
}

}  // namespace baton::model::jinja
