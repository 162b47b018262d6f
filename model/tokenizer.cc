#include "model/tokenizer.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_parts.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

constexpr std::streamoff kMaxFileBytes = std::streamoff{512} << 20;

// The content of a file; none if it does not exist.
absl::StatusOr<std::optional<std::string>> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return std::nullopt;
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", size, " bytes, expected a file of at most ", kMaxFileBytes));
  }
  std::string content(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(content.data(), size))
    return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  return content;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(const std::string& directory) {
  TokenizerFiles files;
  const std::pair<const char*, std::string*> wanted[] = {
      {"tokenizer.json", &files.tokenizer_json},
      {"tokenizer_config.json", &files.tokenizer_config_json},
      {"generation_config.json", &files.generation_config_json},
      {"chat_template.jinja", &files.chat_template_jinja},
  };
  for (const auto& [name, content] : wanted) {
    BATON_ASSIGN_OR_RETURN(std::optional<std::string> read,
                           ReadFile(absl::StrCat(directory, "/", name)));
    if (read) *content = *std::move(read);
  }
  if (files.tokenizer_json.empty()) {
    for (const char* other : {"tiktoken.model", "tokenizer.model"}) {
      if (!std::ifstream(absl::StrCat(directory, "/", other))) continue;
      return absl::UnimplementedError(
          absl::StrCat(directory, ": has ", other,
                       " and no tokenizer.json; supported: a tokenizer.json with a "
                       "byte-level BPE (convert it with the transformers package)"));
    }
    return absl::NotFoundError(absl::StrCat(
        directory,
        "/tokenizer.json: missing or empty; expected the tokenizer of a Hugging Face checkpoint"));
  }
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Parse(files);
  if (tokenizer.ok()) return tokenizer;
  return absl::Status(tokenizer.status().code(),
                      absl::StrCat(directory, "/", tokenizer.status().message()));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Parse(const TokenizerFiles& files) {
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<const TokenizerParts> parts, ParseTokenizerParts(files));
  return std::unique_ptr<const Tokenizer>(new Tokenizer(std::move(parts)));
}

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes, expected at most ", kMaxTextBytes));
  }
  std::string replaced;
  if (!IsValidUtf8(text)) {
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  const bool modern = HasModernCodePoint(text);
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + 2);
  if (add_special_tokens) ids = parts_->prefix;
  Pieces pieces;
  for (const AddedSplit& split : parts_->matcher->Split(text, modern)) {
    if (split.id) {
      ids.push_back(*split.id);
      continue;
    }
    BATON_RETURN_IF_ERROR(parts_->pre_tokenizer->Cut(split.text, modern, pieces));
    for (const std::string_view piece : pieces.views) parts_->bpe->Encode(piece, ids);
  }
  if (add_special_tokens) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const TokenId> ids,
                                              bool skip_special_tokens) const {
  BATON_RETURN_IF_ERROR(ValidateIds(ids));
  std::string bytes;
  for (const TokenId id : ids) {
    if (skip_special_tokens && IsSpecial(id)) continue;
    bytes += IdToBytes(id);
  }
  return ReplaceInvalidUtf8(bytes);
}

absl::Status Tokenizer::ValidateIds(std::span<const TokenId> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size()) continue;
    return absl::InvalidArgumentError(absl::StrCat("token id ", ids[i], " at index ", i,
                                                   " is outside of [0, ", vocab_size(), ")"));
  }
  return absl::OkStatus();
}

TokenId Tokenizer::vocab_size() const { return static_cast<TokenId>(parts_->special.size()); }

std::string_view Tokenizer::IdToBytes(TokenId id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const uint32_t begin = parts_->token_offsets[static_cast<size_t>(id)];
  const uint32_t end = parts_->token_offsets[static_cast<size_t>(id) + 1];
  return std::string_view(parts_->token_bytes).substr(begin, end - begin);
}

std::optional<TokenId> Tokenizer::TokenToId(std::string_view token) const {
  return parts_->FindToken(token);
}

bool Tokenizer::IsSpecial(TokenId id) const {
  return id >= 0 && id < vocab_size() && parts_->special[static_cast<size_t>(id)];
}

std::optional<TokenId> Tokenizer::bos_id() const { return parts_->bos_id; }
const std::vector<TokenId>& Tokenizer::eos_ids() const { return parts_->eos_ids; }
bool Tokenizer::has_chat_template() const {
  return !absl::IsFailedPrecondition(parts_->chat_status);
}

absl::StatusOr<std::string> Tokenizer::RenderChat(std::span<const ChatMessage> messages,
                                                  const ChatOptions& options) const {
  BATON_RETURN_IF_ERROR(parts_->chat_status);
  nlohmann::ordered_json variables = nlohmann::ordered_json::parse(parts_->special_tokens_json);
  if (!options.variables_json.empty()) {
    auto extra =
        nlohmann::ordered_json::parse(options.variables_json, nullptr, /*allow_exceptions=*/false);
    if (!extra.is_object()) {
      return absl::InvalidArgumentError(
          "the chat template's variables are no JSON object; expected one such as {\"thinking\": "
          "true}");
    }
    variables.update(extra);
  }
  variables["add_generation_prompt"] = options.add_generation_prompt;
  variables["messages"] = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    nlohmann::ordered_json entry;
    entry["role"] = ReplaceInvalidUtf8(message.role);
    entry["content"] = ReplaceInvalidUtf8(message.content);
    variables["messages"].push_back(std::move(entry));
  }
  return parts_->chat_template->Render(variables.dump());
}

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string StreamingDetokenizer::Feed(TokenId id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return {};
  held_ += tokenizer_->IdToBytes(id);
  const size_t held = IncompleteUtf8Suffix(held_);
  const std::string text =
      ReplaceInvalidUtf8(std::string_view(held_).substr(0, held_.size() - held));
  held_.erase(0, held_.size() - held);
  return text;
}

std::string StreamingDetokenizer::Flush() { return ReplaceInvalidUtf8(std::exchange(held_, {})); }

}  // namespace baton::model
