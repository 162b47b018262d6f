#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_syntax.h"

namespace baton::model::jinja {
namespace {

// Deepest tree: rendering recurses once per level.
constexpr int kMaxDepth = 150;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::unique_ptr<const Template>> Run() {
    auto parsed = std::make_unique<Template>();
    BATON_ASSIGN_OR_RETURN(parsed->body, ParseBody({}));
    return std::unique_ptr<const Template>(std::move(parsed));
  }

 private:
  const Token& Next() const { return tokens_[at_]; }
  int line() const { return Next().line; }
  bool Is(TokenKind kind, std::string_view text) const {
    return Next().kind == kind && Next().text == text;
  }
  bool IsOp(std::string_view text) const { return Is(TokenKind::kOp, text); }
  bool IsName(std::string_view text) const { return Is(TokenKind::kName, text); }
  bool Take(bool condition) {
    if (condition) ++at_;
    return condition;
  }
  bool TakeOp(std::string_view text) { return Take(IsOp(text)); }
  bool TakeName(std::string_view text) { return Take(IsName(text)); }

  absl::Status Unexpected(std::string_view wanted) const {
    const Token& token = Next();
    std::string found = absl::StrCat("'", token.text, "'");
    if (token.kind == TokenKind::kEnd) found = "the end of the template";
    if (token.kind == TokenKind::kBlockEnd || token.kind == TokenKind::kOutputEnd)
      found = "the end of the tag";
    return InvalidAt(token.line, absl::StrCat("expected ", std::string(wanted), ", found ", found));
  }
  absl::Status ExpectOp(std::string_view op) {
    return TakeOp(op) ? absl::OkStatus() : Unexpected(absl::StrCat("'", std::string(op), "'"));
  }
  absl::Status ExpectName(std::string_view name) {
    return TakeName(name) ? absl::OkStatus()
                          : Unexpected(absl::StrCat("'", std::string(name), "'"));
  }
  absl::Status ExpectBlockEnd() {
    return Take(Next().kind == TokenKind::kBlockEnd) ? absl::OkStatus()
                                                     : Unexpected("the end of the tag");
  }
  absl::StatusOr<std::string> TakeIdentifier() {
    if (Next().kind != TokenKind::kName) return Unexpected("a name");
    return tokens_[at_++].text;
  }

  // Nodes up to a block tag with one of the names in `ends`, whose name is consumed and left in
  // end_; without `ends`, up to the end of the template.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    if (++depth_ > kMaxDepth)
      return UnsupportedAt(line(), absl::StrCat("nesting of more than ", kMaxDepth, " tags"));
    Body body;
    while (Next().kind != TokenKind::kEnd) {
      auto node = std::make_unique<Node>(Node{NodeKind::kText, line()});
      if (Next().kind == TokenKind::kText) {
        node->text = tokens_[at_++].text;
      } else if (Take(Next().kind == TokenKind::kOutputBegin)) {
        node->kind = NodeKind::kOutput;
        BATON_ASSIGN_OR_RETURN(node->value, ParseExpression());
        if (!Take(Next().kind == TokenKind::kOutputEnd)) return Unexpected("the end of the tag");
      } else {
        ++at_;  // kBlockBegin
        BATON_ASSIGN_OR_RETURN(const std::string name, TakeIdentifier());
        if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
          end_ = name;
          --depth_;
          return body;
        }
        BATON_RETURN_IF_ERROR(ParseStatement(name, *node));
      }
      body.push_back(std::move(node));
    }
    if (ends.size() > 0)
      return Unexpected(absl::StrCat("{% ", std::string(*(ends.end() - 1)), " %}"));
    --depth_;
    return body;
  }

  absl::Status ParseStatement(const std::string& name, Node& node) {
    if (name == "if") return ParseIf(node);
    if (name == "for") return ParseFor(node);
    if (name == "set") return ParseSet(node);
    if (name == "macro") return ParseMacro(node);
    if (name == "generation") {  // marks the assistant's tokens for training; here, nothing
      node.kind = NodeKind::kGroup;
      BATON_RETURN_IF_ERROR(ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"endgeneration"}));
      return ExpectBlockEnd();
    }
    if (name == "break" || name == "continue") {
      node.kind = name == "break" ? NodeKind::kBreak : NodeKind::kContinue;
      if (loops_ == 0) return InvalidAt(node.line, absl::StrCat(name, " outside of a loop"));
      return ExpectBlockEnd();
    }
    if (name.starts_with("end") || name == "else" || name == "elif") {
      return InvalidAt(node.line, absl::StrCat("{% ", name, " %} that closes nothing"));
    }
    return UnsupportedAt(node.line, absl::StrCat("{% ", name, " %}"));
  }

  absl::Status ParseIf(Node& node) {
    node.kind = NodeKind::kIf;
    do {
      BATON_ASSIGN_OR_RETURN(ExprPtr condition, ParseExpression());
      BATON_RETURN_IF_ERROR(ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(Body body, ParseBody({"elif", "else", "endif"}));
      node.branches.emplace_back(std::move(condition), std::move(body));
    } while (end_ == "elif");
    if (end_ == "else") {
      BATON_RETURN_IF_ERROR(ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.otherwise, ParseBody({"endif"}));
    }
    return ExpectBlockEnd();
  }

  absl::Status ParseFor(Node& node) {
    node.kind = NodeKind::kFor;
    do {
      BATON_ASSIGN_OR_RETURN(std::string target, TakeIdentifier());
      node.targets.push_back(std::move(target));
    } while (TakeOp(","));
    BATON_RETURN_IF_ERROR(ExpectName("in"));
    BATON_ASSIGN_OR_RETURN(node.value, ParseOr());
    if (TakeName("if")) {
      BATON_ASSIGN_OR_RETURN(node.condition, ParseExpression());
    }
    if (IsName("recursive")) return UnsupportedAt(line(), "a recursive loop");
    BATON_RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"else", "endfor"}));
    --loops_;
    if (end_ == "else") {
      BATON_RETURN_IF_ERROR(ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.otherwise, ParseBody({"endfor"}));
    }
    return ExpectBlockEnd();
  }

  absl::Status ParseSet(Node& node) {
    node.kind = NodeKind::kSet;
    BATON_ASSIGN_OR_RETURN(std::string target, TakeIdentifier());
    node.targets.push_back(std::move(target));
    if (TakeOp(".")) {
      BATON_ASSIGN_OR_RETURN(node.attribute, TakeIdentifier());
    }
    if (IsOp(",")) return UnsupportedAt(line(), "set of several names at once");
    if (TakeOp("=")) {
      BATON_ASSIGN_OR_RETURN(node.value, ParseExpression());
      return ExpectBlockEnd();
    }
    if (IsOp("|")) return UnsupportedAt(line(), "a filter of a set block");
    BATON_RETURN_IF_ERROR(ExpectBlockEnd());
    BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"endset"}));
    return ExpectBlockEnd();
  }

  absl::Status ParseMacro(Node& node) {
    node.kind = NodeKind::kMacro;
    BATON_ASSIGN_OR_RETURN(node.macro.name, TakeIdentifier());
    BATON_RETURN_IF_ERROR(ExpectOp("("));
    while (!TakeOp(")")) {
      if (!node.macro.parameters.empty()) BATON_RETURN_IF_ERROR(ExpectOp(","));
      BATON_ASSIGN_OR_RETURN(std::string parameter, TakeIdentifier());
      ExprPtr fallback;
      if (TakeOp("=")) {
        BATON_ASSIGN_OR_RETURN(fallback, ParseExpression());
      }
      node.macro.parameters.emplace_back(std::move(parameter), std::move(fallback));
    }
    BATON_RETURN_IF_ERROR(ExpectBlockEnd());
    const int loops = std::exchange(loops_, 0);
    BATON_ASSIGN_OR_RETURN(node.macro.body, ParseBody({"endmacro"}));
    loops_ = loops;
    return ExpectBlockEnd();
  }

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
    if (expr->depth + depth_ <= kMaxDepth) return expr;
    return UnsupportedAt(expr->line,
                         absl::StrCat("an expression that nests more than ", kMaxDepth, " deep"));
  }

  absl::StatusOr<ExprPtr> ParseExpression() {
    if (++depth_ > kMaxDepth) {
      return UnsupportedAt(line(),
                           absl::StrCat("an expression that nests more than ", kMaxDepth, " deep"));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseOr());
    while (IsName("if")) {
      const int at_line = line();
      ++at_;
      BATON_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
      ExprPtr otherwise;
      if (TakeName("else")) {
        BATON_ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      BATON_ASSIGN_OR_RETURN(value, Make(ExprKind::kConditional, at_line, "", std::move(value),
                                         std::move(condition), std::move(otherwise)));
    }
    --depth_;
    return value;
  }

  absl::StatusOr<ExprPtr> ParseOr() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
    while (TakeName("or")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
      BATON_ASSIGN_OR_RETURN(left,
                             Make(ExprKind::kOr, line(), "", std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExprPtr> ParseAnd() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
    while (TakeName("and")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
      BATON_ASSIGN_OR_RETURN(left,
                             Make(ExprKind::kAnd, line(), "", std::move(left), std::move(right)));
    }
    return left;
  }

  absl::StatusOr<ExprPtr> ParseNot() {
    int nots = 0;
    while (TakeName("not")) ++nots;
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseCompare());
    for (; nots > 0; --nots) {
      BATON_ASSIGN_OR_RETURN(value, Make(ExprKind::kNot, line(), "", std::move(value)));
    }
    return value;
  }

  // The comparison operator in front, consumed; empty if there is none.
  std::string TakeComparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (TakeOp(op)) return std::string(op);
    }
    if (TakeName("in")) return "in";
    if (IsName("not") && at_ + 1 < tokens_.size() && tokens_[at_ + 1].kind == TokenKind::kName &&
        tokens_[at_ + 1].text == "in") {
      at_ += 2;
      return "not in";
    }
    return "";
  }

  absl::StatusOr<ExprPtr> ParseCompare() {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, ParseSum());
    const int at_line = line();
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
                                      absl::StatusOr<ExprPtr> (Parser::*operand)()) {
    BATON_ASSIGN_OR_RETURN(ExprPtr left, (this->*operand)());
    while (true) {
      const auto op =
          std::find_if(ops.begin(), ops.end(), [&](std::string_view o) { return IsOp(o); });
      if (op == ops.end()) return left;
      const int at_line = line();
      ++at_;
      BATON_ASSIGN_OR_RETURN(ExprPtr right, (this->*operand)());
      BATON_ASSIGN_OR_RETURN(left, Make(ExprKind::kBinary, at_line, std::string(*op),
                                        std::move(left), std::move(right)));
    }
  }
  absl::StatusOr<ExprPtr> ParseSum() { return ParseBinary({"+", "-"}, &Parser::ParseConcat); }
  absl::StatusOr<ExprPtr> ParseConcat() { return ParseBinary({"~"}, &Parser::ParseProduct); }
  absl::StatusOr<ExprPtr> ParseProduct() {
    return ParseBinary({"*", "/", "//", "%"}, &Parser::ParseFiltered);
  }

  absl::StatusOr<ExprPtr> ParseFiltered() {
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseUnary());
    if (IsOp("**")) return UnsupportedAt(line(), "the operator **");
    while (true) {
      if (TakeOp("|")) {
        BATON_ASSIGN_OR_RETURN(value, ParseFilter(std::move(value)));
      } else if (TakeName("is")) {
        BATON_ASSIGN_OR_RETURN(value, ParseTest(std::move(value)));
      } else if (IsOp("(")) {
        BATON_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExprPtr> ParseFilter(ExprPtr input) {
    auto filter = std::make_unique<Expr>(Expr{ExprKind::kFilter, line()});
    BATON_ASSIGN_OR_RETURN(filter->text, TakeIdentifier());
    filter->kids.push_back(std::move(input));
    if (TakeOp("(")) BATON_RETURN_IF_ERROR(ParseArguments(*filter));
    return Finish(std::move(filter));
  }

  absl::StatusOr<ExprPtr> ParseTest(ExprPtr input) {
    const int at_line = line();
    const bool negated = TakeName("not");
    auto test = std::make_unique<Expr>(Expr{ExprKind::kTest, at_line});
    BATON_ASSIGN_OR_RETURN(test->text, TakeIdentifier());
    test->kids.push_back(std::move(input));
    // An argument may follow without brackets, unless the word there goes on with the expression.
    const bool word = Next().kind == TokenKind::kName &&
                      !(IsName("else") || IsName("or") || IsName("and") || IsName("is") ||
                        IsName("if") || IsName("in") || IsName("not"));
    if (TakeOp("(")) {
      BATON_RETURN_IF_ERROR(ParseArguments(*test));
    } else if (word || Next().kind == TokenKind::kString || Next().kind == TokenKind::kInt ||
               Next().kind == TokenKind::kFloat || IsOp("[") || IsOp("{")) {
      BATON_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
      BATON_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
      test->kids.push_back(std::move(argument));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr done, Finish(std::move(test)));
    if (!negated) return done;
    return Make(ExprKind::kNot, at_line, "", std::move(done));
  }

  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee) {
    auto call = std::make_unique<Expr>(Expr{ExprKind::kCall, line()});
    call->kids.push_back(std::move(callee));
    ++at_;
    BATON_RETURN_IF_ERROR(ParseArguments(*call));
    return Finish(std::move(call));
  }

  // After '(': arguments up to ')'.
  absl::Status ParseArguments(Expr& call) {
    bool first = true;
    while (!TakeOp(")")) {
      if (!first) BATON_RETURN_IF_ERROR(ExpectOp(","));
      first = false;
      if (TakeOp(")")) break;
      if (IsOp("*") || IsOp("**")) return UnsupportedAt(line(), "unpacking of arguments");
      const bool named = Next().kind == TokenKind::kName && at_ + 1 < tokens_.size() &&
                         tokens_[at_ + 1].kind == TokenKind::kOp && tokens_[at_ + 1].text == "=";
      const std::string name = named ? Next().text : "";
      if (named) at_ += 2;
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
    if (IsOp("-") || IsOp("+")) {
      if (++depth_ > kMaxDepth) return UnsupportedAt(line(), "so many signs");
      const bool minus = TakeOp("-");
      if (!minus) ++at_;
      BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseUnary());
      --depth_;
      if (!minus) return value;
      return Make(ExprKind::kNegate, line(), "", std::move(value));
    }
    BATON_ASSIGN_OR_RETURN(ExprPtr value, ParsePrimary());
    return ParsePostfix(std::move(value));
  }

  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr value) {
    while (true) {
      const int at_line = line();
      if (TakeOp(".")) {
        if (Next().kind == TokenKind::kInt) {
          auto index = std::make_unique<Expr>(Expr{ExprKind::kLiteral, at_line});
          index->literal = Value(static_cast<int64_t>(std::stoll(tokens_[at_++].text)));
          BATON_ASSIGN_OR_RETURN(
              value, Make(ExprKind::kItem, at_line, "", std::move(value), std::move(index)));
          continue;
        }
        BATON_ASSIGN_OR_RETURN(std::string name, TakeIdentifier());
        BATON_ASSIGN_OR_RETURN(
            value, Make(ExprKind::kAttribute, at_line, std::move(name), std::move(value)));
      } else if (TakeOp("[")) {
        BATON_ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
      } else if (IsOp("(")) {
        BATON_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
      } else {
        return value;
      }
    }
  }

  // After '[': an index, or a slice.
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object) {
    const int at_line = line();
    ExprPtr parts[3];
    int part = 0;
    while (!IsOp("]")) {
      if (TakeOp(":")) {
        if (++part > 2) return Unexpected("']'");
      } else if (parts[part] == nullptr) {
        BATON_ASSIGN_OR_RETURN(parts[part], ParseExpression());
      } else {
        return IsOp(",") ? UnsupportedAt(line(), "an index of several values") : Unexpected("']'");
      }
    }
    ++at_;
    if (part > 0) {
      return Make(ExprKind::kSlice, at_line, "", std::move(object), std::move(parts[0]),
                  std::move(parts[1]), std::move(parts[2]));
    }
    if (parts[0] == nullptr) return InvalidAt(at_line, "an empty index []");
    return Make(ExprKind::kItem, at_line, "", std::move(object), std::move(parts[0]));
  }

  absl::StatusOr<ExprPtr> ParsePrimary() {
    const Token& token = Next();
    auto expr = std::make_unique<Expr>(Expr{ExprKind::kLiteral, token.line});
    switch (token.kind) {
      case TokenKind::kName:
        ++at_;
        return ParseNamePrimary(token.text, std::move(expr));
      case TokenKind::kString: {
        std::string text;
        while (Next().kind == TokenKind::kString) text += tokens_[at_++].text;
        expr->literal = Value(std::move(text));
        return expr;
      }
      case TokenKind::kInt:
        expr->literal = Value(static_cast<int64_t>(std::stoll(tokens_[at_++].text)));
        return expr;
      case TokenKind::kFloat:
        expr->literal = Value(std::stod(tokens_[at_++].text));
        return expr;
      default:
        break;
    }
    if (TakeOp("(")) return ParseBracketed();
    if (TakeOp("[")) {
      expr->kind = ExprKind::kList;
      BATON_RETURN_IF_ERROR(ParseItems("]", *expr));
      return Finish(std::move(expr));
    }
    if (TakeOp("{")) {
      expr->kind = ExprKind::kDict;
      BATON_RETURN_IF_ERROR(ParseItems("}", *expr));
      return Finish(std::move(expr));
    }
    return Unexpected("a value");
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
    auto tuple = std::make_unique<Expr>(Expr{ExprKind::kList, line()});
    if (TakeOp(")")) return tuple;
    BATON_ASSIGN_OR_RETURN(ExprPtr first, ParseExpression());
    if (TakeOp(")")) return first;
    tuple->kids.push_back(std::move(first));
    BATON_RETURN_IF_ERROR(ExpectOp(","));
    BATON_RETURN_IF_ERROR(ParseItems(")", *tuple));
    return Finish(std::move(tuple));
  }

  // Items up to `close`; of a kDict, pairs.
  absl::Status ParseItems(std::string_view close, Expr& expr) {
    bool first = true;
    while (!TakeOp(close)) {
      if (!first) BATON_RETURN_IF_ERROR(ExpectOp(","));
      first = false;
      if (TakeOp(close)) break;
      BATON_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
      expr.kids.push_back(std::move(item));
      if (expr.kind != ExprKind::kDict) continue;
      BATON_RETURN_IF_ERROR(ExpectOp(":"));
      BATON_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      expr.kids.push_back(std::move(value));
    }
    return absl::OkStatus();
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  std::string end_;  // the tag that ended the last body
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Template>> Parse(std::string_view source) {
  BATON_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace baton::model::jinja
