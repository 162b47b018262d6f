#ifndef BATON_MODEL_CHAT_TEMPLATE_TOKENS_H_
#define BATON_MODEL_CHAT_TEMPLATE_TOKENS_H_

// A cursor over a template's tokens, which the parsers of statements and of expressions share.
// Internal to the chat template.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/chat_template_syntax.h"

namespace baton::model::jinja {

class TokenReader {
 public:
  // Deepest tree: rendering recurses once per level.
  static constexpr int kMaxDepth = 150;

  // As Lex gives them: kEnd is the last.
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& Next() const { return tokens_[at_]; }
  int line() const { return Next().line; }
  bool Is(TokenKind kind, std::string_view text) const {
    return Next().kind == kind && Next().text == text;
  }
  bool IsOp(std::string_view text) const { return Is(TokenKind::kOp, text); }
  bool IsName(std::string_view text) const { return Is(TokenKind::kName, text); }
  // Whether the token after the next one is this.
  bool IsFollowedBy(TokenKind kind, std::string_view text) const;

  // Each of these consumes the next token, Take... only if it is (or `condition` says) the one.
  void Skip() { ++at_; }
  const std::string& TakeText() { return tokens_[at_++].text; }
  bool Take(bool condition) {
    if (condition) ++at_;
    return condition;
  }
  bool TakeOp(std::string_view text) { return Take(IsOp(text)); }
  bool TakeName(std::string_view text) { return Take(IsName(text)); }
  absl::StatusOr<std::string> TakeIdentifier();

  absl::Status Unexpected(std::string_view wanted) const;
  absl::Status ExpectOp(std::string_view op);
  absl::Status ExpectName(std::string_view name);
  absl::Status ExpectBlockEnd();

  int depth = 0;  // tags and expressions around the next token; the parsers count

 private:
  const std::vector<Token> tokens_;
  size_t at_ = 0;
};

// A whole expression, and one that `if` ends, as what a loop walks over.
absl::StatusOr<ExprPtr> ParseExpression(TokenReader& in);
absl::StatusOr<ExprPtr> ParseUnconditional(TokenReader& in);

}  // namespace baton::model::jinja

#endif  // BATON_MODEL_CHAT_TEMPLATE_TOKENS_H_
