#ifndef BATON_MODEL_CHAT_TEMPLATE_SYNTAX_H_
#define BATON_MODEL_CHAT_TEMPLATE_SYNTAX_H_

// Tokens and syntax tree of a chat template. Internal to the chat template.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/chat_template_value.h"

namespace baton::model::jinja {

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kOutputBegin,
  kOutputEnd,
  kName,
  kString,
  kInt,
  kFloat,
  kOp,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;  // of kString: the value
  int line;
};

// Cuts a template into tokens; white space control has been applied to the texts. Ends with kEnd.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kLiteral,
  kName,         // text
  kList,         // kids
  kDict,         // kids: key, value, key, value, ...
  kAttribute,    // kids[0] . text
  kItem,         // kids[0] [ kids[1] ]
  kSlice,        // kids[0] [ kids[1] : kids[2] : kids[3] ], any but the first may be null
  kCall,         // kids[0] ( kids[1..], keywords )
  kFilter,       // kids[0] | text ( kids[1..], keywords )
  kTest,         // kids[0] is text ( kids[1..] )
  kNegate,       // - kids[0]
  kNot,          // not kids[0]
  kAnd,          // kids[0] and kids[1]
  kOr,           // kids[0] or kids[1]
  kBinary,       // kids[0] text kids[1]
  kCompare,      // kids[0] operators[0] kids[1] operators[1] kids[2] ...
  kConditional,  // kids[0] if kids[1] else kids[2], which may be null
};

struct Expr {
  ExprKind kind;
  int line;
  std::string text = {};
  Value literal = {};
  std::vector<ExprPtr> kids = {};
  std::vector<std::pair<std::string, ExprPtr>> keywords = {};
  std::vector<std::string> operators = {};
  int depth = 1;  // of this tree
};

struct Node;
using Body = std::vector<std::unique_ptr<Node>>;

struct MacroNode {
  std::string name;
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // the default, or null
  Body body;
};

enum class NodeKind { kText, kOutput, kIf, kFor, kSet, kMacro, kBreak, kContinue, kGroup };

struct Node {
  NodeKind kind;
  int line;
  std::string text = {};  // kText

  ExprPtr value = {};  // kOutput, kSet (null: the rendered body), and what kFor walks over

  std::vector<std::pair<ExprPtr, Body>> branches = {};  // kIf: condition and body
  Body body = {};                                       // kFor, kSet with a block, kGroup
  Body otherwise = {};                                  // kIf, kFor: else

  std::vector<std::string> targets = {};  // kFor, kSet: names
  std::string attribute = {};  // kSet: of the namespace targets[0]; empty: the name itself
  ExprPtr condition = {};      // kFor: if

  MacroNode macro = {};  // kMacro
};

struct Template {
  Body body;
};

absl::StatusOr<std::unique_ptr<const Template>> Parse(std::string_view source);

// Renders with the members of `variables`, a dict.
absl::StatusOr<std::string> Evaluate(const Template& parsed, const Value& variables);

// "chat template, line 7: ..."; UNIMPLEMENTED and INVALID_ARGUMENT.
absl::Status UnsupportedAt(int line, const std::string& what);
absl::Status InvalidAt(int line, const std::string& what);

// What filters, tests and methods get.
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Filters, tests, and methods of strings and objects. Errors carry no line. UNIMPLEMENTED for
// unknown names.
absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& input,
                                  const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& input,
                               const Arguments& arguments);
absl::StatusOr<Value> CallMethod(const Value& object, const std::string& name,
                                 const Arguments& arguments);

// Operators. Errors carry no line; INVALID_ARGUMENT for values that Python refuses.

// + - * / // % of two numbers. A result outside of 64 bits is an error.
absl::StatusOr<Value> Arithmetic(const std::string& op, const Value& left, const Value& right);

// == != < > <= >= in, not in.
absl::StatusOr<bool> Compare(const std::string& op, const Value& left, const Value& right);

// object[index] of a list or a string; undefined out of range.
Value ItemAt(const Value& object, int64_t index);

// object[first:last:by] of a list or a string.
absl::StatusOr<Value> Slice(const Value& object, std::optional<int64_t> first,
                            std::optional<int64_t> last, std::optional<int64_t> by);

// Python's `item in container`.
absl::StatusOr<bool> Contains(const Value& container, const Value& item);

// What a for loop walks over: items of a list, keys of an object, characters of a string, nothing
// if undefined.
absl::StatusOr<List> Iterate(const Value& value);

}  // namespace baton::model::jinja

#endif  // BATON_MODEL_CHAT_TEMPLATE_SYNTAX_H_
