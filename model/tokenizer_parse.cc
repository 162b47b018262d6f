#include "model/tokenizer_parse.h"

#include <algorithm>
#include <utility>

#include "base/status_macros.h"
#include "model/tokenizer.h"
#include "model/tokenizer_utf8.h"

namespace baton::model {
namespace {

constexpr int kMaxNesting = 8;  // of Sequence in Sequence

// GPT-2's pattern, which ByteLevel applies under use_regex.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Words and other visible runs, with the \w of Rust's regex crate.
constexpr std::string_view kWhitespacePattern =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}\s]+)";

absl::StatusOr<PreTokenizeStep> PatternStep(const JsonNode& node, std::string_view pattern,
                                            SplitBehavior behavior, bool invert) {
  absl::StatusOr<Regex> regex = Regex::FromOniguruma(pattern);
  if (!regex.ok()) return node.Annotate(regex.status());
  PreTokenizeStep step;
  step.pattern = *std::move(regex);
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

absl::StatusOr<PreTokenizeStep> ParseSplit(const JsonNode& node) {
  BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "pattern", "behavior", "invert"}));
  static constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  BATON_ASSIGN_OR_RETURN(const JsonNode behavior_node, node.Get("behavior"));
  BATON_ASSIGN_OR_RETURN(const std::string behavior_name, behavior_node.AsString());
  const auto* behavior =
      std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                   [&](const auto& entry) { return entry.first == behavior_name; });
  if (behavior == std::end(kBehaviors)) {
    return behavior_node.Unsupported(
        "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
  }
  BATON_ASSIGN_OR_RETURN(const bool invert, node.GetBool("invert", false));
  BATON_ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
  BATON_RETURN_IF_ERROR(pattern.ExpectObject());
  BATON_RETURN_IF_ERROR(ExpectKeys(pattern, {"Regex", "String"}));
  if (const std::optional<JsonNode> regex = pattern.Find("Regex")) {
    BATON_ASSIGN_OR_RETURN(const std::string text, regex->AsString());
    return PatternStep(*regex, text, behavior->second, invert);
  }
  BATON_ASSIGN_OR_RETURN(const JsonNode string, pattern.Get("String"));
  BATON_ASSIGN_OR_RETURN(const std::string text, string.AsString());
  absl::StatusOr<Regex> literal = Regex::FromLiteral(text);
  if (!literal.ok()) return string.Annotate(literal.status());
  PreTokenizeStep step;
  step.pattern = *std::move(literal);
  step.behavior = behavior->second;
  step.invert = invert;
  return step;
}

absl::Status AddByteLevel(const JsonNode& node, PreTokenizerSpec& spec) {
  BATON_RETURN_IF_ERROR(
      ExpectKeys(node, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  PreTokenizeStep step;
  BATON_ASSIGN_OR_RETURN(const bool use_regex, node.GetBool("use_regex", true));
  if (use_regex) {
    BATON_ASSIGN_OR_RETURN(step, PatternStep(node, kGpt2Pattern, SplitBehavior::kIsolated, false));
  }
  BATON_ASSIGN_OR_RETURN(step.add_prefix_space, node.GetBool("add_prefix_space", true));
  spec.steps.push_back(std::move(step));
  spec.byte_level = true;
  return absl::OkStatus();
}

absl::Status AddPreTokenizer(const JsonNode& node, int depth, PreTokenizerSpec& spec) {
  BATON_ASSIGN_OR_RETURN(const std::string type, node.GetString("type"));
  if (spec.byte_level) return node.Unsupported("nothing after ByteLevel, which must come last");
  if (type == "Sequence") {
    if (depth == kMaxNesting)
      return node.Unsupported(absl::StrCat("at most ", kMaxNesting, " nested sequences"));
    BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "pretokenizers"}));
    BATON_ASSIGN_OR_RETURN(const JsonNode list, node.Get("pretokenizers"));
    BATON_RETURN_IF_ERROR(list.ExpectArray());
    for (size_t i = 0; i < list.value().size(); ++i) {
      BATON_RETURN_IF_ERROR(AddPreTokenizer(list.At(i), depth + 1, spec));
    }
    return absl::OkStatus();
  }
  if (type == "ByteLevel") return AddByteLevel(node, spec);
  PreTokenizeStep step;
  if (type == "Split") {
    BATON_ASSIGN_OR_RETURN(step, ParseSplit(node));
  } else if (type == "Digits") {
    BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "individual_digits"}));
    BATON_ASSIGN_OR_RETURN(const bool individual, node.GetBool("individual_digits", false));
    BATON_ASSIGN_OR_RETURN(
        step,
        PatternStep(node, "\\p{N}",
                    individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false));
  } else if (type == "Whitespace") {
    BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type"}));
    BATON_ASSIGN_OR_RETURN(step,
                           PatternStep(node, kWhitespacePattern, SplitBehavior::kRemoved, true));
  } else if (type == "WhitespaceSplit") {
    BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type"}));
    BATON_ASSIGN_OR_RETURN(step, PatternStep(node, "\\s", SplitBehavior::kRemoved, false));
  } else {
    BATON_ASSIGN_OR_RETURN(const JsonNode type_node, node.Get("type"));
    return type_node.Unsupported("Sequence, Split, Digits, Whitespace, WhitespaceSplit, ByteLevel");
  }
  spec.steps.push_back(std::move(step));
  return absl::OkStatus();
}

// The ids of one piece of a TemplateProcessing.
absl::Status AddTemplatePiece(const JsonNode& piece, const JsonNode& node, bool& seen_text,
                              PostProcessorSpec& spec) {
  BATON_RETURN_IF_ERROR(piece.ExpectObject());
  BATON_RETURN_IF_ERROR(ExpectKeys(piece, {"Sequence", "SpecialToken"}));
  if (const std::optional<JsonNode> sequence = piece.Find("Sequence")) {
    BATON_ASSIGN_OR_RETURN(const std::string id, sequence->GetString("id"));
    if (id != "A" || seen_text) return sequence->Unsupported("the sequence A, once");
    seen_text = true;
    return absl::OkStatus();
  }
  BATON_ASSIGN_OR_RETURN(const JsonNode special, piece.Get("SpecialToken"));
  BATON_ASSIGN_OR_RETURN(const std::string name, special.GetString("id"));
  BATON_ASSIGN_OR_RETURN(const JsonNode all, node.Get("special_tokens"));
  BATON_ASSIGN_OR_RETURN(const JsonNode token, all.Get(name));
  BATON_ASSIGN_OR_RETURN(const JsonNode ids, token.Get("ids"));
  BATON_RETURN_IF_ERROR(ids.ExpectArray());
  for (size_t i = 0; i < ids.value().size(); ++i) {
    BATON_ASSIGN_OR_RETURN(const TokenId id, ids.At(i).AsId(Tokenizer::kMaxVocabSize));
    (seen_text ? spec.suffix : spec.prefix).push_back(id);
  }
  return absl::OkStatus();
}

absl::Status AddPostProcessor(const JsonNode& node, int depth, PostProcessorSpec& spec) {
  BATON_ASSIGN_OR_RETURN(const std::string type, node.GetString("type"));
  if (type == "ByteLevel") {  // concerns offsets only
    return ExpectKeys(node, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (type == "Sequence") {
    if (depth == kMaxNesting)
      return node.Unsupported(absl::StrCat("at most ", kMaxNesting, " nested sequences"));
    BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "processors"}));
    BATON_ASSIGN_OR_RETURN(const JsonNode list, node.Get("processors"));
    BATON_RETURN_IF_ERROR(list.ExpectArray());
    for (size_t i = 0; i < list.value().size(); ++i) {
      BATON_RETURN_IF_ERROR(AddPostProcessor(list.At(i), depth + 1, spec));
    }
    return absl::OkStatus();
  }
  BATON_ASSIGN_OR_RETURN(const JsonNode type_node, node.Get("type"));
  if (type != "TemplateProcessing" || spec.has_template) {
    return type_node.Unsupported("ByteLevel, Sequence, and one TemplateProcessing");
  }
  BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "single", "pair", "special_tokens"}));
  spec.has_template = true;
  BATON_ASSIGN_OR_RETURN(const JsonNode single, node.Get("single"));
  BATON_RETURN_IF_ERROR(single.ExpectArray());
  bool seen_text = false;
  for (size_t i = 0; i < single.value().size(); ++i) {
    BATON_RETURN_IF_ERROR(AddTemplatePiece(single.At(i), node, seen_text, spec));
  }
  return seen_text ? absl::OkStatus() : single.Unsupported("a template with the sequence A");
}

// One entry of `merges`: "left right", or ["left", "right"].
absl::StatusOr<std::pair<std::string, std::string>> ParseMerge(const JsonNode& entry) {
  const nlohmann::json& value = entry.value();
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
    return std::make_pair(value[0].get<std::string>(), value[1].get<std::string>());
  }
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return entry.Expected("two tokens, as \"left right\" or [\"left\", \"right\"]");
}

absl::Status ParseVocab(const JsonNode& node, Vocabulary& vocab) {
  BATON_RETURN_IF_ERROR(node.ExpectObject());
  vocab.reserve(node.value().size());
  absl::flat_hash_map<TokenId, const std::string*> owners;
  owners.reserve(node.value().size());
  for (auto it = node.value().begin(); it != node.value().end(); ++it) {
    const bool fits = it->is_number_unsigned() &&
                      it->get<uint64_t>() < static_cast<uint64_t>(Tokenizer::kMaxVocabSize);
    if (!fits) return node.Find(it.key()).value_or(node).AsId(Tokenizer::kMaxVocabSize).status();
    const TokenId id = static_cast<TokenId>(it->get<uint64_t>());
    const auto [owner, is_new] = owners.try_emplace(id, &it.key());
    if (!is_new) {
      return node.Annotate(absl::InvalidArgumentError(
          absl::StrCat("the tokens \"", *owner->second, "\" and \"", it.key(),
                       "\" have the same id ", id, ", expected unique ids")));
    }
    vocab.emplace(it.key(), id);
  }
  return vocab.empty() ? node.Expected("at least one token") : absl::OkStatus();
}

// `key` must be absent, null, or one of the values that change nothing.
absl::Status ExpectInert(const JsonNode& model, const std::string& key,
                         std::initializer_list<nlohmann::json> inert) {
  const std::optional<JsonNode> node = model.Find(key);
  if (!node || std::find(inert.begin(), inert.end(), node->value()) != inert.end())
    return absl::OkStatus();
  return node->Unsupported("null");
}

}  // namespace

absl::Status ExpectKeys(const JsonNode& object, std::initializer_list<std::string_view> known) {
  for (auto it = object.value().begin(); it != object.value().end(); ++it) {
    if (std::find(known.begin(), known.end(), it.key()) != known.end() || it->is_null()) continue;
    std::string list;
    for (const std::string_view key : known)
      absl::StrAppend(&list, list.empty() ? "" : ", ", std::string(key));
    return object.Find(it.key())->Unsupported(absl::StrCat("the keys ", list));
  }
  return absl::OkStatus();
}

absl::StatusOr<BpeSpec> ParseBpe(const JsonNode& model) {
  BATON_RETURN_IF_ERROR(model.ExpectObject());
  BATON_ASSIGN_OR_RETURN(const JsonNode type, model.Get("type"));
  if (type.value() != "BPE") return type.Unsupported("BPE");
  BATON_RETURN_IF_ERROR(ExpectKeys(
      model, {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  BATON_RETURN_IF_ERROR(ExpectInert(model, "dropout", {0, 0.0}));
  BATON_RETURN_IF_ERROR(ExpectInert(model, "continuing_subword_prefix", {""}));
  BATON_RETURN_IF_ERROR(ExpectInert(model, "end_of_word_suffix", {""}));
  BpeSpec spec;
  if (const std::optional<JsonNode> unk = model.Find("unk_token")) {
    BATON_ASSIGN_OR_RETURN(spec.unk_token, unk->AsString());
  }
  BATON_ASSIGN_OR_RETURN(spec.fuse_unk, model.GetBool("fuse_unk", false));
  BATON_ASSIGN_OR_RETURN(spec.byte_fallback, model.GetBool("byte_fallback", false));
  BATON_ASSIGN_OR_RETURN(spec.ignore_merges, model.GetBool("ignore_merges", false));
  BATON_ASSIGN_OR_RETURN(const JsonNode vocab, model.Get("vocab"));
  BATON_RETURN_IF_ERROR(ParseVocab(vocab, spec.vocab));
  BATON_ASSIGN_OR_RETURN(const JsonNode merges, model.Get("merges"));
  BATON_RETURN_IF_ERROR(merges.ExpectArray());
  spec.merges.reserve(merges.value().size());
  for (size_t i = 0; i < merges.value().size(); ++i) {
    BATON_ASSIGN_OR_RETURN(auto merge, ParseMerge(merges.At(i)));
    spec.merges.push_back(std::move(merge));
  }
  return spec;
}

absl::StatusOr<PreTokenizerSpec> ParsePreTokenizer(const JsonNode& node) {
  PreTokenizerSpec spec;
  BATON_RETURN_IF_ERROR(AddPreTokenizer(node, 0, spec));
  return spec;
}

absl::Status CheckNormalizer(const JsonNode& node) {
  BATON_ASSIGN_OR_RETURN(const JsonNode type, node.Get("type"));
  if (type.value() != "Sequence") return type.Unsupported("null, or a Sequence of no normalizers");
  BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "normalizers"}));
  BATON_ASSIGN_OR_RETURN(const JsonNode list, node.Get("normalizers"));
  BATON_RETURN_IF_ERROR(list.ExpectArray());
  for (size_t i = 0; i < list.value().size(); ++i)
    BATON_RETURN_IF_ERROR(CheckNormalizer(list.At(i)));
  return absl::OkStatus();
}

absl::Status CheckDecoder(const JsonNode& node) {
  BATON_ASSIGN_OR_RETURN(const JsonNode type, node.Get("type"));
  if (type.value() == "ByteLevel") {
    return ExpectKeys(node, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  constexpr char kSupported[] = "ByteLevel, or a Sequence of ByteLevel and then Fuse";
  if (type.value() != "Sequence") return type.Unsupported(kSupported);
  BATON_RETURN_IF_ERROR(ExpectKeys(node, {"type", "decoders"}));
  BATON_ASSIGN_OR_RETURN(const JsonNode list, node.Get("decoders"));
  BATON_RETURN_IF_ERROR(list.ExpectArray());
  for (size_t i = 0; i < list.value().size(); ++i) {
    BATON_ASSIGN_OR_RETURN(const JsonNode part, list.At(i).Get("type"));
    if (part.value() != (i == 0 ? "ByteLevel" : "Fuse")) return part.Unsupported(kSupported);
  }
  return list.value().empty() ? list.Unsupported(kSupported) : absl::OkStatus();
}

absl::StatusOr<PostProcessorSpec> ParsePostProcessor(const JsonNode& node) {
  PostProcessorSpec spec;
  BATON_RETURN_IF_ERROR(AddPostProcessor(node, 0, spec));
  return spec;
}

}  // namespace baton::model
