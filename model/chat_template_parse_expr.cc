// Expressions of a chat template, by recursive descent: conditional, or, and, not, comparison, + -,
// ~, * / // %, filters and tests, signs, members and calls.

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_tokens.h"

namespace baton::model::jinja {
namespace {

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenReader& in) : in_(in) {}

  absl::StatusOr<ExprPtr> ParseExpression() {
    if (++in_.depth > TokenReader::kMaxDepth) {
      return UnsupportedAt(in_.line(), absl::StrCat("an expression that nests more than ",
                                                    TokenReader::kMaxDepth, " deep"));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseOr());
    while (in_.IsName("if")) {
      const int at_line = in_.line();
      in_.Skip();
      BATON_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
      ExprPtr otherwise;
      if (in_.TakeName("else")) {
        BATON_ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      BATON_ASSIGN_OR_RETURN(value, Make(ExprKind::kConditional, at_line, "", std::move(value),
                                         std::move(condition), std::move(otherwise)));
    }
    --in_.depth;
    return value;
  }

  // Without a conditional at its top.
  absl::StatusOr<ExprPtr> ParseOr() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
    while (in_.TakeName("or")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
      BATON_ASSIGN_OR_RETURN(
          left, Make(ExprKind::kOr, in_.line(), "", std::move(left), std::move(right)));
    }
    return left;
  }

 private:
  // Makes a node of `kids`, which must not make the tree too deep.
  template <typename... Kids>
  absl::StatusOr<ExprPtr> Make(ExprKind kind, int line, std::string text, Kids... kids) {
    auto expr = std::make_unique<Expr>(Expr{kind, line, std::move(text)});
    (expr->kids.push_back(std::move(kids)), ...);
    return Finish(std::move(expr));
  }
  absl::StatusOr<ExprPtr> Finish(ExprPtr expr) const {
    for (const ExprPtr& kid : expr->kids) {
      if (kid != nullptr) expr->depth = std::max(expr->depth, kid->depth + 1);
    }
    for (const auto& [name, kid] : expr->keywords)
      expr->depth = std::max(expr->depth, kid->depth + 1);
    if (expr->depth + in_.depth <= TokenReader::kMaxDepth) return expr;
    return UnsupportedAt(expr->line, absl::StrCat("an expression that nests more than ",
                                                  TokenReader::kMaxDepth, " deep"));
  }

  absl::StatusOr<ExprPtr> ParseAnd() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
    while (in_.TakeName("and")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
      BATON_ASSIGN_OR_RETURN(
          left, Make(ExprKind::kAnd, in_.line(), "", std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExprPtr> ParseNot() {
    int nots = 0;
    while (in_.TakeName("not")) ++nots;
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseCompare());
    for (; nots > 0; --nots) {
      BATON_ASSIGN_OR_RETURN(value, Make(ExprKind::kNot, in_.line(), "", std::move(value)));
    }
    return value;
  }

  // The comparison operator in front, consumed; empty if there is none.
  std::string TakeComparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (in_.TakeOp(op)) return std::string(op);
    }
    if (in_.TakeName("in")) return "in";
    if (in_.IsName("not") && in_.IsFollowedBy(TokenKind::kName, "in")) {
      in_.Skip();
      in_.Skip();
      return "not in";
    }
    return "";
  }

  absl::StatusOr<ExprPtr> ParseCompare() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseSum());
    const int at_line = in_.line();
    std::string op = TakeComparison();
    if (op.empty()) return left;
    auto expr = std::make_unique<Expr>(Expr{ExprKind::kCompare, at_line});
    expr->kids.push_back(std::move(left));
    for (; !op.empty(); op = TakeComparison()) {
      BATON_ASSIGN_OR_RETURN(ExprPtr right, ParseSum());
      expr->operators.push_back(std::move(op));
      expr->kids.push_back(std::move(right));
    }
    return Finish(std::move(expr));
  }

  // The three levels of left-associative operators: + -, then ~, then * / // %.
  absl::StatusOr<ExprPtr> ParseBinary(std::initializer_list<std::string_view> ops,
                                      absl::StatusOr<ExprPtr> (ExpressionParser::*operand)()) {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, (this->*operand)());
    while (true) {
      const auto op =
          std::find_if(ops.begin(), ops.end(), [&](std::string_view o) { return in_.IsOp(o); });
      if (op == ops.end()) return left;
      const int at_line = in_.line();
      in_.Skip();
      BATON_ASSIGN_OR_RETURN(ExprPtr right, (this->*operand)());
      BATON_ASSIGN_OR_RETURN(left, Make(ExprKind::kBinary, at_line, std::string(*op),
                                        std::move(left), std::move(right)));
    }
  }
  absl::StatusOr<ExprPtr> ParseSum() {
    return ParseBinary({"+", "-"}, &ExpressionParser::ParseConcat);
  }
  absl::StatusOr<ExprPtr> ParseConcat() {
    return ParseBinary({"~"}, &ExpressionParser::ParseProduct);
  }
  absl::StatusOr<ExprPtr> ParseProduct() {
    return ParseBinary({"*", "/", "//", "%"}, &ExpressionParser::ParseFiltered);
  }

  absl::StatusOr<ExprPtr> ParseFiltered() {
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseUnary());
    if (in_.IsOp("**")) return UnsupportedAt(in_.line(), "the operator **");
    while (true) {
      if (in_.TakeOp("|")) {
        BATON_ASSIGN_OR_RETURN(value, ParseFilter(std::move(value)));
      } else if (in_.TakeName("is")) {
        BATON_ASSIGN_OR_RETURN(value, ParseTest(std::move(value)));
      } else if (in_.IsOp("(")) {
        BATON_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExprPtr> ParseFilter(ExprPtr input) {
    auto filter = std::make_unique<Expr>(Expr{ExprKind::kFilter, in_.line()});
    BATON_ASSIGN_OR_RETURN(filter->text, in_.TakeIdentifier());
    filter->kids.push_back(std::move(input));
    if (in_.TakeOp("(")) BATON_RETURN_IF_ERROR(ParseArguments(*filter));
    return Finish(std::move(filter));
  }

  absl::StatusOr<ExprPtr> ParseTest(ExprPtr input) {
    const int at_line = in_.line();
    const bool negated = in_.TakeName("not");
    auto test = std::make_unique<Expr>(Expr{ExprKind::kTest, at_line});
    BATON_ASSIGN_OR_RETURN(test->text, in_.TakeIdentifier());
    test->kids.push_back(std::move(input));
    // An argument may follow without brackets, unless the word there goes on with the expression.
    const bool word =
        in_.Next().kind == TokenKind::kName &&
        !(in_.IsName("else") || in_.IsName("or") || in_.IsName("and") || in_.IsName("is") ||
          in_.IsName("if") || in_.IsName("in") || in_.IsName("not"));
    if (in_.TakeOp("(")) {
      BATON_RETURN_IF_ERROR(ParseArguments(*test));
    } else if (word || in_.Next().kind == TokenKind::kString ||
               in_.Next().kind == TokenKind::kInt || in_.Next().kind == TokenKind::kFloat ||
               in_.IsOp("[") || in_.IsOp("{")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
      BATON_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
      test->kids.push_back(std::move(argument));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr done, Finish(std::move(test)));
    if (!negated) return done;
    return Make(ExprKind::kNot, at_line, "", std::move(done));
  }

  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee) {
    auto call = std::make_unique<Expr>(Expr{ExprKind::kCall, in_.line()});
    call->kids.push_back(std::move(callee));
    in_.Skip();
    BATON_RETURN_IF_ERROR(ParseArguments(*call));
    return Finish(std::move(call));
  }

  // After '(': arguments up to ')'.
  absl::Status ParseArguments(Expr& call) {
    bool first = true;
    while (!in_.TakeOp(")")) {
      if (!first) BATON_RETURN_IF_ERROR(in_.ExpectOp(","));
      first = false;
      if (in_.TakeOp(")")) break;
      if (in_.IsOp("*") || in_.IsOp("**"))
        return UnsupportedAt(in_.line(), "unpacking of arguments");
      const bool named =
          in_.Next().kind == TokenKind::kName && in_.IsFollowedBy(TokenKind::kOp, "=");
      const std::string name = named ? in_.Next().text : "";
      if (named) {
        in_.Skip();
        in_.Skip();
      }
      BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      if (named) {
        call.keywords.emplace_back(name, std::move(value));
      } else {
        call.kids.push_back(std::move(value));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExprPtr> ParseUnary() {
    if (in_.IsOp("-") || in_.IsOp("+")) {
      if (++in_.depth > TokenReader::kMaxDepth) return UnsupportedAt(in_.line(), "so many signs");
      const bool minus = in_.TakeOp("-");
      if (!minus) in_.Skip();
      BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseUnary());
      --in_.depth;
      if (!minus) return value;
      return Make(ExprKind::kNegate, in_.line(), "", std::move(value));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParsePrimary());
    return ParsePostfix(std::move(value));
  }

  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr value) {
    while (true) {
      const int at_line = in_.line();
      if (in_.TakeOp(".")) {
        if (in_.Next().kind == TokenKind::kInt) {
          auto index = std::make_unique<Expr>(Expr{ExprKind::kLiteral, at_line});
          index->literal = Value(static_cast<int64_t>(std::stoll(in_.TakeText())));
          BATON_ASSIGN_OR_RETURN(
              value, Make(ExprKind::kItem, at_line, "", std::move(value), std::move(index)));
          continue;
        }
        BATON_ASSIGN_OR_RETURN(std::string name, in_.TakeIdentifier());
        BATON_ASSIGN_OR_RETURN(
            value, Make(ExprKind::kAttribute, at_line, std::move(name), std::move(value)));
      } else if (in_.TakeOp("[")) {
        BATON_ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
      } else if (in_.IsOp("(")) {
        BATON_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
      } else {
        return value;
      }
    }
  }

  // After '[': an index, or a slice.
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object) {
    const int at_line = in_.line();
    ExprPtr parts[3];
    int part = 0;
    while (!in_.IsOp("]")) {
      if (in_.TakeOp(":")) {
        if (++part > 2) return in_.Unexpected("']'");
      } else if (parts[part] == nullptr) {
        BATON_ASSIGN_OR_RETURN(parts[part], ParseExpression());
      } else {
        return in_.IsOp(",") ? UnsupportedAt(in_.line(), "an index of several values")
                             : in_.Unexpected("']'");
      }
    }
    in_.Skip();
    if (part > 0) {
      return Make(ExprKind::kSlice, at_line, "", std::move(object), std::move(parts[0]),
                  std::move(parts[1]), std::move(parts[2]));
    }
    if (parts[0] == nullptr) return InvalidAt(at_line, "an empty index []");
    return Make(ExprKind::kItem, at_line, "", std::move(object), std::move(parts[0]));
  }

  absl::StatusOr<ExprPtr> ParsePrimary() {
    const Token& token = in_.Next();
    auto expr = std::make_unique<Expr>(Expr{ExprKind::kLiteral, token.line});
    switch (token.kind) {
      case TokenKind::kName:
        in_.Skip();
        return ParseNamePrimary(token.text, std::move(expr));
      case TokenKind::kString: {
        std::string text;
        while (in_.Next().kind == TokenKind::kString) text += in_.TakeText();
        expr->literal = Value(std::move(text));
        return expr;
      }
      case TokenKind::kInt:
        expr->literal = Value(static_cast<int64_t>(std::stoll(in_.TakeText())));
        return expr;
      case TokenKind::kFloat:
        expr->literal = Value(std::stod(in_.TakeText()));
        return expr;
      default:
        break;
    }
    if (in_.TakeOp("(")) return ParseBracketed();
    if (in_.TakeOp("[")) {
      expr->kind = ExprKind::kList;
      BATON_RETURN_IF_ERROR(ParseItems("]", *expr));
      return Finish(std::move(expr));
    }
    if (in_.TakeOp("{")) {
      expr->kind = ExprKind::kDict;
      BATON_RETURN_IF_ERROR(ParseItems("}", *expr));
      return Finish(std::move(expr));
    }
    return in_.Unexpected("a value");
  }

  static absl::StatusOr<ExprPtr> ParseNamePrimary(const std::string& name, ExprPtr expr) {
    if (name == "true" || name == "True") {
      expr->literal = Value(true);
    } else if (name == "false" || name == "False") {
      expr->literal = Value(false);
    } else if (name == "none" || name == "None") {
      expr->literal = Value(None());
    } else {
      expr->kind = ExprKind::kName;
      expr->text = name;
    }
    return expr;
  }

  // After '(': a value in brackets, or a tuple, which is a list here.
  absl::StatusOr<ExprPtr> ParseBracketed() {
    auto tuple = std::make_unique<Expr>(Expr{ExprKind::kList, in_.line()});
    if (in_.TakeOp(")")) return tuple;
    BATON_ASSIGN_OR_RETURN(ExprPtr first, ParseExpression());
    if (in_.TakeOp(")")) return first;
    tuple->kids.push_back(std::move(first));
    BATON_RETURN_IF_ERROR(in_.ExpectOp(","));
    BATON_RETURN_IF_ERROR(ParseItems(")", *tuple));
    return Finish(std::move(tuple));
  }

  // Items up to `close`; of a kDict, pairs.
  absl::Status ParseItems(std::string_view close, Expr& expr) {
    bool first = true;
    while (!in_.TakeOp(close)) {
      if (!first) BATON_RETURN_IF_ERROR(in_.ExpectOp(","));
      first = false;
      if (in_.TakeOp(close)) break;
      BATON_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
      expr.kids.push_back(std::move(item));
      if (expr.kind != ExprKind::kDict) continue;
      BATON_RETURN_IF_ERROR(in_.ExpectOp(":"));
      BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      expr.kids.push_back(std::move(value));
    }
    return absl::OkStatus();
  }

  TokenReader& in_;
};

}  // namespace

absl::StatusOr<ExprPtr> ParseExpression(TokenReader& in) {
  return ExpressionParser(in).ParseExpression();
}

absl::StatusOr<ExprPtr> ParseUnconditional(TokenReader& in) {
  return ExpressionParser(in).ParseOr();
}

}  // namespace baton::model::jinja
