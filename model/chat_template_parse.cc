// Statements of a chat template, and the cursor over its tokens.

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/chat_template_tokens.h"

namespace baton::model::jinja {

// --- tokens -------------------------------------------------------------------------------

bool TokenReader::IsFollowedBy(TokenKind kind, std::string_view text) const {
  return at_ + 1 < tokens_.size() && tokens_[at_ + 1].kind == kind && tokens_[at_ + 1].text == text;
}

absl::Status TokenReader::Unexpected(std::string_view wanted) const {
  const Token& token = Next();
  std::string found = absl::StrCat("'", token.text, "'");
  if (token.kind == TokenKind::kEnd) found = "the end of the template";
  if (token.kind == TokenKind::kBlockEnd || token.kind == TokenKind::kOutputEnd)
    found = "the end of the tag";
  return InvalidAt(token.line, absl::StrCat("expected ", std::string(wanted), ", found ", found));
}

absl::Status TokenReader::ExpectOp(std::string_view op) {
  return TakeOp(op) ? absl::OkStatus() : Unexpected(absl::StrCat("'", std::string(op), "'"));
}

absl::Status TokenReader::ExpectName(std::string_view name) {
  return TakeName(name) ? absl::OkStatus() : Unexpected(absl::StrCat("'", std::string(name), "'"));
}

absl::Status TokenReader::ExpectBlockEnd() {
  return Take(Next().kind == TokenKind::kBlockEnd) ? absl::OkStatus()
                                                   : Unexpected("the end of the tag");
}

absl::StatusOr<std::string> TokenReader::TakeIdentifier() {
  if (Next().kind != TokenKind::kName) return Unexpected("a name");
  return tokens_[at_++].text;
}

// --- statements ---------------------------------------------------------------------------

namespace {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : in_(std::move(tokens)) {}

  absl::StatusOr<std::unique_ptr<const Template>> Run() {
    auto parsed = std::make_unique<Template>();
    BATON_ASSIGN_OR_RETURN(parsed->body, ParseBody({}));
    return std::unique_ptr<const Template>(std::move(parsed));
  }

 private:
  // Nodes up to a block tag with one of the names in `ends`, whose name is consumed and left in
  // end_; without `ends`, up to the end of the template.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    if (++in_.depth > TokenReader::kMaxDepth)
      return UnsupportedAt(in_.line(),
                           absl::StrCat("nesting of more than ", TokenReader::kMaxDepth, " tags"));
    Body body;
    while (in_.Next().kind != TokenKind::kEnd) {
      auto node = std::make_unique<Node>(Node{NodeKind::kText, in_.line()});
      if (in_.Next().kind == TokenKind::kText) {
        node->text = in_.TakeText();
      } else if (in_.Take(in_.Next().kind == TokenKind::kOutputBegin)) {
        node->kind = NodeKind::kOutput;
        BATON_ASSIGN_OR_RETURN(node->value, ParseExpression(in_));
        if (!in_.Take(in_.Next().kind == TokenKind::kOutputEnd))
          return in_.Unexpected("the end of the tag");
      } else {
        in_.Skip();  // kBlockBegin
        BATON_ASSIGN_OR_RETURN(const std::string name, in_.TakeIdentifier());
        if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
          end_ = name;
          --in_.depth;
          return body;
        }
        BATON_RETURN_IF_ERROR(ParseStatement(name, *node));
      }
      body.push_back(std::move(node));
    }
    if (ends.size() > 0)
      return in_.Unexpected(absl::StrCat("{% ", std::string(*(ends.end() - 1)), " %}"));
    --in_.depth;
    return body;
  }

  absl::Status ParseStatement(const std::string& name, Node& node) {
    if (name == "if") return ParseIf(node);
    if (name == "for") return ParseFor(node);
    if (name == "set") return ParseSet(node);
    if (name == "macro") return ParseMacro(node);
    if (name == "generation") {  // marks the assistant's tokens for training; here, nothing
      node.kind = NodeKind::kGroup;
      BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"endgeneration"}));
      return in_.ExpectBlockEnd();
    }
    if (name == "break" || name == "continue") {
      node.kind = name == "break" ? NodeKind::kBreak : NodeKind::kContinue;
      if (loops_ == 0) return InvalidAt(node.line, absl::StrCat(name, " outside of a loop"));
      return in_.ExpectBlockEnd();
    }
    if (name.starts_with("end") || name == "else" || name == "elif") {
      return InvalidAt(node.line, absl::StrCat("{% ", name, " %} that closes nothing"));
    }
    return UnsupportedAt(node.line, absl::StrCat("{% ", name, " %}"));
  }

  absl::Status ParseIf(Node& node) {
    node.kind = NodeKind::kIf;
    do {
      BATON_ASSIGN_OR_RETURN(ExprPtr condition, ParseExpression(in_));
      BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(Body body, ParseBody({"elif", "else", "endif"}));
      node.branches.emplace_back(std::move(condition), std::move(body));
    } while (end_ == "elif");
    if (end_ == "else") {
      BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.otherwise, ParseBody({"endif"}));
    }
    return in_.ExpectBlockEnd();
  }

  absl::Status ParseFor(Node& node) {
    node.kind = NodeKind::kFor;
    do {
      BATON_ASSIGN_OR_RETURN(std::string target, in_.TakeIdentifier());
      node.targets.push_back(std::move(target));
    } while (in_.TakeOp(","));
    BATON_RETURN_IF_ERROR(in_.ExpectName("in"));
    BATON_ASSIGN_OR_RETURN(node.value, ParseUnconditional(in_));
    if (in_.TakeName("if")) {
      BATON_ASSIGN_OR_RETURN(node.condition, ParseExpression(in_));
    }
    if (in_.IsName("recursive")) return UnsupportedAt(in_.line(), "a recursive loop");
    BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
    ++loops_;
    BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"else", "endfor"}));
    --loops_;
    if (end_ == "else") {
      BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
      BATON_ASSIGN_OR_RETURN(node.otherwise, ParseBody({"endfor"}));
    }
    return in_.ExpectBlockEnd();
  }

  absl::Status ParseSet(Node& node) {
    node.kind = NodeKind::kSet;
    BATON_ASSIGN_OR_RETURN(std::string target, in_.TakeIdentifier());
    node.targets.push_back(std::move(target));
    if (in_.TakeOp(".")) {
      BATON_ASSIGN_OR_RETURN(node.attribute, in_.TakeIdentifier());
    }
    if (in_.IsOp(",")) return UnsupportedAt(in_.line(), "set of several names at once");
    if (in_.TakeOp("=")) {
      BATON_ASSIGN_OR_RETURN(node.value, ParseExpression(in_));
      return in_.ExpectBlockEnd();
    }
    if (in_.IsOp("|")) return UnsupportedAt(in_.line(), "a filter of a set block");
    BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
    BATON_ASSIGN_OR_RETURN(node.body, ParseBody({"endset"}));
    return in_.ExpectBlockEnd();
  }

  absl::Status ParseMacro(Node& node) {
    node.kind = NodeKind::kMacro;
    BATON_ASSIGN_OR_RETURN(node.macro.name, in_.TakeIdentifier());
    BATON_RETURN_IF_ERROR(in_.ExpectOp("("));
    while (!in_.TakeOp(")")) {
      if (!node.macro.parameters.empty()) BATON_RETURN_IF_ERROR(in_.ExpectOp(","));
      BATON_ASSIGN_OR_RETURN(std::string parameter, in_.TakeIdentifier());
      ExprPtr fallback;
      if (in_.TakeOp("=")) {
        BATON_ASSIGN_OR_RETURN(fallback, ParseExpression(in_));
      }
      node.macro.parameters.emplace_back(std::move(parameter), std::move(fallback));
    }
    BATON_RETURN_IF_ERROR(in_.ExpectBlockEnd());
    const int loops = std::exchange(loops_, 0);
    BATON_ASSIGN_OR_RETURN(node.macro.body, ParseBody({"endmacro"}));
    loops_ = loops;
    return in_.ExpectBlockEnd();
  }

  TokenReader in_;
  int loops_ = 0;
  std::string end_;  // the tag that ended the last body
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Template>> Parse(std::string_view source) {
  BATON_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace baton::model::jinja
