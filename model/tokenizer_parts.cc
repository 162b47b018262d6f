#include "model/tokenizer_parts.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "model/tokenizer_json.h"
#include "model/tokenizer_parse.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

constexpr char kTokenizerFile[] = "tokenizer.json";
constexpr char kConfigFile[] = "tokenizer_config.json";
constexpr char kGenerationFile[] = "generation_config.json";

// Which ids added tokens may have. The `tokenizers` package keeps the vocabulary's id where it has
// the token, and else numbers on behind everything that is there, whatever the file says; a file
// that says otherwise is refused, because nobody could tell which of the two its model was trained
// with.
class IdRegistry {
 public:
  explicit IdRegistry(const Vocabulary& vocab)
      : vocab_(vocab), next_(static_cast<TokenId>(vocab.size())) {
    for (const auto& [token, id] : vocab) taken_.emplace(id, token);
  }

  // OK if `token` may have its id, which is then taken; `node` is where it stands.
  absl::Status Add(const JsonNode& node, const AddedToken& token) {
    const auto in_vocab = vocab_.find(token.content);
    const bool known = in_vocab != vocab_.end();
    const TokenId id = known ? in_vocab->second : next_;
    if (token.id != id) {
      return node.Expected(absl::StrCat(
          "the id ", id,
          known ? " that 'model.vocab' gives this token" : ", the next after the tokens so far"));
    }
    const auto [owner, is_free] = taken_.try_emplace(id, token.content);
    if (!is_free && owner->second != token.content) {
      return node.Expected(absl::StrCat("an id that is not \"", owner->second, "\"'s"));
    }
    next_ = std::max(next_, id + 1);
    return absl::OkStatus();
  }

 private:
  const Vocabulary& vocab_;
  TokenId next_;
  absl::flat_hash_map<TokenId, std::string> taken_;
};

absl::StatusOr<AddedToken> ParseAddedToken(const JsonNode& node, std::optional<TokenId> id_of_key) {
  BATON_RETURN_IF_ERROR(node.ExpectObject());
  BATON_RETURN_IF_ERROR(ExpectKeys(node, {"id", "content", "single_word", "lstrip", "rstrip",
                                          "normalized", "special", "__type"}));
  AddedToken token;
  if (id_of_key) {
    token.id = *id_of_key;
  } else {
    BATON_ASSIGN_OR_RETURN(const JsonNode id, node.Get("id"));
    BATON_ASSIGN_OR_RETURN(token.id, id.AsId(Tokenizer::kMaxVocabSize));
  }
  BATON_ASSIGN_OR_RETURN(const JsonNode content, node.Get("content"));
  BATON_ASSIGN_OR_RETURN(token.content, content.AsString());
  if (token.content.empty()) return content.Expected("a token that is not empty");
  BATON_ASSIGN_OR_RETURN(token.special, node.GetBool("special", false));
  BATON_ASSIGN_OR_RETURN(token.normalized, node.GetBool("normalized", !token.special));
  BATON_ASSIGN_OR_RETURN(token.lstrip, node.GetBool("lstrip", false));
  BATON_ASSIGN_OR_RETURN(token.rstrip, node.GetBool("rstrip", false));
  BATON_ASSIGN_OR_RETURN(token.single_word, node.GetBool("single_word", false));
  return token;
}

absl::Status ParseAddedTokens(const JsonNode& list, IdRegistry& registry, TokenizerParts& parts) {
  BATON_RETURN_IF_ERROR(list.ExpectArray());
  for (size_t i = 0; i < list.value().size(); ++i) {
    const JsonNode node = list.At(i);
    BATON_ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(node, std::nullopt));
    if (!parts.added_ids.emplace(token.content, token.id).second) {
      return node.Expected("a token that is not listed twice");
    }
    BATON_RETURN_IF_ERROR(registry.Add(node, token));
    parts.added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// tokenizer_config's added_tokens_decoder repeats the added tokens by id. Entries that
// tokenizer.json lacks join them in the order of their ids, as transformers does.
absl::Status MergeAddedTokensDecoder(const JsonNode& decoder, IdRegistry& registry,
                                     TokenizerParts& parts) {
  BATON_RETURN_IF_ERROR(decoder.ExpectObject());
  std::map<TokenId, JsonNode> by_id;
  for (auto it = decoder.value().begin(); it != decoder.value().end(); ++it) {
    const JsonNode node = decoder.Find(it.key()).value_or(decoder);
    int32_t id = 0;
    if (!absl::SimpleAtoi(it.key(), &id) || id < 0 || id >= Tokenizer::kMaxVocabSize) {
      return node.Expected(
          absl::StrCat("a key that is an id in [0, ", Tokenizer::kMaxVocabSize, ")"));
    }
    by_id.emplace(id, node);
  }
  for (const auto& [id, node] : by_id) {
    BATON_ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(node, id));
    const auto [known, is_new] = parts.added_ids.emplace(token.content, id);
    if (!is_new && known->second != id) {
      return node.Expected(
          absl::StrCat("under the id ", known->second, " that tokenizer.json gives this token"));
    }
    if (!is_new) continue;
    BATON_RETURN_IF_ERROR(registry.Add(node, token));
    parts.added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// Fills the tables by id.
void IndexIds(TokenizerParts& parts) {
  TokenId highest = 0;
  for (const auto& [token, id] : parts.bpe->vocab()) highest = std::max(highest, id);
  for (const AddedToken& token : parts.added_tokens) highest = std::max(highest, token.id);
  const size_t size = static_cast<size_t>(highest) + 1;
  std::vector<const std::string*> tokens(size);
  for (const auto& [token, id] : parts.bpe->vocab()) tokens[static_cast<size_t>(id)] = &token;
  parts.special.resize(size);
  for (const AddedToken& token : parts.added_tokens) {
    tokens[static_cast<size_t>(token.id)] = &token.content;
    parts.special[static_cast<size_t>(token.id)] = token.special;
  }
  parts.token_offsets.reserve(size + 1);
  parts.token_offsets.push_back(0);
  for (const std::string* token : tokens) {
    if (token != nullptr) parts.token_bytes += BytesOfToken(*token);
    parts.token_offsets.push_back(static_cast<uint32_t>(parts.token_bytes.size()));
  }
}

// A special token of tokenizer_config: a string, or an object with "content".
absl::StatusOr<std::optional<std::string>> ParseConfigToken(const JsonNode& config,
                                                            const std::string& key) {
  const std::optional<JsonNode> node = config.Find(key);
  if (!node) return std::nullopt;
  if (node->value().is_object()) return node->GetString("content");
  return node->AsString();
}

absl::StatusOr<TokenId> ResolveToken(const JsonNode& config, const std::string& key,
                                     const std::string& content, const TokenizerParts& parts) {
  if (const std::optional<TokenId> id = parts.FindToken(content)) return *id;
  return config.Find(key).value_or(config).Expected("a token that tokenizer.json has");
}

// transformers' Llama classes make their own template from add_bos_token and add_eos_token, in
// place of the post_processor; for other classes a true flag adds what the template lacks.
absl::Status ApplyBosAndEos(const JsonNode& config, const PostProcessorSpec& post,
                            std::optional<TokenId> eos, TokenizerParts& parts) {
  parts.prefix = post.prefix;
  parts.suffix = post.suffix;
  bool llama = false;
  if (const std::optional<JsonNode> name = config.Find("tokenizer_class")) {
    llama = name->value() == "LlamaTokenizer" || name->value() == "LlamaTokenizerFast";
  }
  BATON_ASSIGN_OR_RETURN(const bool add_bos, config.GetBool("add_bos_token", llama));
  BATON_ASSIGN_OR_RETURN(const bool add_eos, config.GetBool("add_eos_token", false));
  if (add_bos && !parts.bos_id)
    return config.Annotate(absl::InvalidArgumentError("add_bos_token needs a bos_token"));
  if (add_eos && !eos)
    return config.Annotate(absl::InvalidArgumentError("add_eos_token needs an eos_token"));
  if (llama) {
    parts.prefix.clear();
    parts.suffix.clear();
  }
  if (add_bos && (parts.prefix.empty() || parts.prefix.front() != *parts.bos_id)) {
    parts.prefix.insert(parts.prefix.begin(), *parts.bos_id);
  }
  if (add_eos && (parts.suffix.empty() || parts.suffix.back() != *eos))
    parts.suffix.push_back(*eos);
  return absl::OkStatus();
}

// The template's source: a string, or a list of named ones, of which "default" counts.
absl::StatusOr<std::string> FindChatTemplate(const JsonNode& config) {
  const std::optional<JsonNode> node = config.Find("chat_template");
  if (!node)
    return absl::FailedPreconditionError(
        "the checkpoint has no chat template (tokenizer_config.json's "
        "'chat_template' or chat_template.jinja)");
  if (!node->value().is_array()) return node->AsString();
  for (size_t i = 0; i < node->value().size(); ++i) {
    BATON_ASSIGN_OR_RETURN(const std::string name, node->At(i).GetString("name"));
    if (name == "default") return node->At(i).GetString("template");
  }
  return node->Unsupported("a template named \"default\"");
}

void CompileChatTemplate(const JsonNode& config, const std::string& jinja_file,
                         TokenizerParts& parts) {
  absl::StatusOr<std::string> source =
      jinja_file.empty() ? FindChatTemplate(config) : absl::StatusOr<std::string>(jinja_file);
  if (!source.ok()) {
    parts.chat_status = source.status();
    return;
  }
  absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(*source);
  if (compiled.ok()) {
    parts.chat_template = *std::move(compiled);
  } else {
    parts.chat_status = compiled.status();
  }
}

absl::Status ParseGenerationConfig(const std::string& text, std::vector<TokenId>& eos_ids) {
  if (text.empty()) return absl::OkStatus();
  BATON_ASSIGN_OR_RETURN(const nlohmann::json json, JsonNode::ParseObject(text, kGenerationFile));
  const std::optional<JsonNode> eos = JsonNode(json, kGenerationFile).Find("eos_token_id");
  if (!eos) return absl::OkStatus();
  const size_t count = eos->value().is_array() ? eos->value().size() : 1;
  for (size_t i = 0; i < count; ++i) {
    const JsonNode node = eos->value().is_array() ? eos->At(i) : *eos;
    BATON_ASSIGN_OR_RETURN(const TokenId id, node.AsId(Tokenizer::kMaxVocabSize));
    eos_ids.push_back(id);
  }
  return absl::OkStatus();
}

// Everything of tokenizer.json but the template's prefix and suffix, which tokenizer_config may
// change.
absl::StatusOr<PostProcessorSpec> ParseTokenizerJson(const std::string& text,
                                                     std::optional<IdRegistry>& registry,
                                                     TokenizerParts& parts) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json json, JsonNode::ParseObject(text, kTokenizerFile));
  const JsonNode root(json, kTokenizerFile);
  BATON_RETURN_IF_ERROR(ExpectKeys(root, {"version", "added_tokens", "normalizer", "pre_tokenizer",
                                          "post_processor", "decoder", "model"}));
  if (const auto version = root.Find("version"); version && version->value() != "1.0") {
    return version->Unsupported("\"1.0\"");
  }
  if (const auto normalizer = root.Find("normalizer"))
    BATON_RETURN_IF_ERROR(CheckNormalizer(*normalizer));
  BATON_ASSIGN_OR_RETURN(const JsonNode decoder, root.Get("decoder"));
  BATON_RETURN_IF_ERROR(CheckDecoder(decoder));
  BATON_ASSIGN_OR_RETURN(const JsonNode pre_tokenizer, root.Get("pre_tokenizer"));
  BATON_ASSIGN_OR_RETURN(PreTokenizerSpec pre, ParsePreTokenizer(pre_tokenizer));
  BATON_ASSIGN_OR_RETURN(const JsonNode model, root.Get("model"));
  BATON_ASSIGN_OR_RETURN(BpeSpec bpe, ParseBpe(model));
  bpe.byte_level = pre.byte_level;
  parts.pre_tokenizer.emplace(std::move(pre.steps));
  absl::StatusOr<std::unique_ptr<const BytePairEncoder>> encoder =
      BytePairEncoder::Create(std::move(bpe));
  if (!encoder.ok()) {
    return absl::Status(encoder.status().code(),
                        absl::StrCat(kTokenizerFile, ": ", encoder.status().message()));
  }
  parts.bpe = *std::move(encoder);
  registry.emplace(parts.bpe->vocab());
  if (const auto added = root.Find("added_tokens"))
    BATON_RETURN_IF_ERROR(ParseAddedTokens(*added, *registry, parts));
  PostProcessorSpec post;
  if (const auto processor = root.Find("post_processor")) {
    BATON_ASSIGN_OR_RETURN(post, ParsePostProcessor(*processor));
  }
  return post;
}

absl::Status ParseConfig(const TokenizerFiles& files, const PostProcessorSpec& post,
                         IdRegistry& registry, TokenizerParts& parts) {
  nlohmann::json json = nlohmann::json::object();
  if (!files.tokenizer_config_json.empty()) {
    BATON_ASSIGN_OR_RETURN(json, JsonNode::ParseObject(files.tokenizer_config_json, kConfigFile));
  }
  const JsonNode config(json, kConfigFile);
  if (const auto decoder = config.Find("added_tokens_decoder")) {
    BATON_RETURN_IF_ERROR(MergeAddedTokensDecoder(*decoder, registry, parts));
  }
  std::optional<TokenId> eos;
  nlohmann::json special = nlohmann::json::object();
  for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    BATON_ASSIGN_OR_RETURN(const std::optional<std::string> content, ParseConfigToken(config, key));
    if (!content) continue;
    special[key] = *content;
    if (key == std::string_view("bos_token")) {
      BATON_ASSIGN_OR_RETURN(parts.bos_id, ResolveToken(config, key, *content, parts));
    } else if (key == std::string_view("eos_token")) {
      BATON_ASSIGN_OR_RETURN(eos, ResolveToken(config, key, *content, parts));
      parts.eos_ids.push_back(*eos);
    }
  }
  parts.special_tokens_json = special.dump();
  CompileChatTemplate(config, files.chat_template_jinja, parts);
  return ApplyBosAndEos(config, post, eos, parts);
}

}  // namespace

std::optional<TokenId> TokenizerParts::FindToken(std::string_view token) const {
  if (const auto it = added_ids.find(std::string(token)); it != added_ids.end()) return it->second;
  if (const auto it = bpe->vocab().find(std::string(token)); it != bpe->vocab().end())
    return it->second;
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<const TokenizerParts>> ParseTokenizerParts(
    const TokenizerFiles& files) {
  auto parts = std::make_unique<TokenizerParts>();
  std::optional<IdRegistry> registry;
  BATON_ASSIGN_OR_RETURN(const PostProcessorSpec post,
                         ParseTokenizerJson(files.tokenizer_json, registry, *parts));
  BATON_RETURN_IF_ERROR(ParseConfig(files, post, *registry, *parts));
  BATON_RETURN_IF_ERROR(ParseGenerationConfig(files.generation_config_json, parts->eos_ids));
  std::sort(parts->eos_ids.begin(), parts->eos_ids.end());
  parts->eos_ids.erase(std::unique(parts->eos_ids.begin(), parts->eos_ids.end()),
                       parts->eos_ids.end());
  BATON_ASSIGN_OR_RETURN(parts->matcher, AddedTokenMatcher::Create(parts->added_tokens));
  IndexIds(*parts);
  for (const std::vector<TokenId>* ids : {&parts->prefix, &parts->suffix}) {
    for (const TokenId id : *ids) {
      if (static_cast<size_t>(id) < parts->special.size()) continue;
      return absl::InvalidArgumentError(absl::StrCat(kTokenizerFile,
                                                     ": key 'post_processor' adds the id ", id,
                                                     ", expected an id of a token"));
    }
  }
  return std::unique_ptr<const TokenizerParts>(std::move(parts));
}

}  // namespace baton::model
