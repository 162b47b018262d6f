// What a tokenizer promises besides the oracle's ids: its configuration files, its errors, its
// bounds.

#include "model/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_testing.h"

namespace baton::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

absl::StatusOr<std::unique_ptr<const Tokenizer>> Parse(const Json& tokenizer,
                                                       const Json& config = nullptr,
                                                       const Json& generation = nullptr) {
  TokenizerFiles files;
  files.tokenizer_json = tokenizer.dump();
  if (!config.is_null()) files.tokenizer_config_json = config.dump();
  if (!generation.is_null()) files.generation_config_json = generation.dump();
  return Tokenizer::Parse(files);
}

const Json& Small() {
  static const Json& small = *new Json(ReadGolden("small.json"));
  return small;
}

std::unique_ptr<const Tokenizer> ParseOrDie(const Json& tokenizer, const Json& config = nullptr,
                                            const Json& generation = nullptr) {
  auto parsed = Parse(tokenizer, config, generation);
  BATON_CHECK_MSG(parsed.ok(), parsed.status().ToString());
  return *std::move(parsed);
}

std::vector<TokenId> Ids(const Tokenizer& tokenizer, std::string_view text, bool special = true) {
  auto ids = tokenizer.Encode(text, special);
  BATON_CHECK_MSG(ids.ok(), ids.status().ToString());
  return *std::move(ids);
}

constexpr char kBos[] = "<｜begin▁of▁sentence｜>";
constexpr char kEos[] = "<｜end▁of▁sentence｜>";

TEST(Tokenizer, BosAndEosFollowTheConfiguration) {
  const TokenId a = Ids(*ParseOrDie(Small()), "a").at(0);
  // Without a tokenizer_config.json, or with one that asks for nothing, the text stays alone.
  EXPECT_THAT(Ids(*ParseOrDie(Small()), "a"), ElementsAre(a));
  EXPECT_THAT(Ids(*ParseOrDie(Small(), {{"bos_token", kBos}, {"eos_token", kEos}}), "a"),
              ElementsAre(a));
  Json config = {{"bos_token", {{"content", kBos}}}, {"eos_token", kEos}, {"add_bos_token", true}};
  EXPECT_THAT(Ids(*ParseOrDie(Small(), config), "a"), ElementsAre(0, a));
  EXPECT_THAT(Ids(*ParseOrDie(Small(), config), "a", false), ElementsAre(a));
  EXPECT_THAT(Ids(*ParseOrDie(Small(), config), ""), ElementsAre(0));
  config["add_eos_token"] = true;
  EXPECT_THAT(Ids(*ParseOrDie(Small(), config), "a"), ElementsAre(0, a, 1));

  // A template in tokenizer.json gives BOS once, unless a Llama class replaces it.
  Json with_template = Small();
  with_template["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "B"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", Json::array()},
      {"special_tokens", {{"B", {{"id", "B"}, {"ids", {0}}, {"tokens", {"B"}}}}}}};
  config["add_eos_token"] = false;
  EXPECT_THAT(Ids(*ParseOrDie(with_template, config), "a"), ElementsAre(0, a));
  config["add_bos_token"] = false;
  EXPECT_THAT(Ids(*ParseOrDie(with_template, config), "a"), ElementsAre(0, a));
  config["tokenizer_class"] = "LlamaTokenizerFast";
  EXPECT_THAT(Ids(*ParseOrDie(with_template, config), "a"), ElementsAre(a));
  config.erase("add_bos_token");  // on by default in this class
  EXPECT_THAT(Ids(*ParseOrDie(Small(), config), "a"), ElementsAre(0, a));
}

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const auto tokenizer =
      ParseOrDie(Small(), {{"bos_token", kBos}, {"eos_token", kEos}}, {{"eos_token_id", {2, 1}}});
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(1, 2));
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  const TokenId user = *tokenizer->TokenToId("<｜User｜>");
  EXPECT_FALSE(tokenizer->IsSpecial(user));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
  EXPECT_EQ(tokenizer->TokenToId("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer->IdToBytes(user), "<｜User｜>");
  EXPECT_EQ(tokenizer->IdToBytes(*tokenizer->TokenToId("Ġ")), " ");
  EXPECT_EQ(tokenizer->IdToBytes(-1), "");
  EXPECT_EQ(tokenizer->IdToBytes(tokenizer->vocab_size()), "");
  EXPECT_THAT(Ids(*tokenizer, "a<｜User｜>b"), testing::Contains(user));

  const auto bare = ParseOrDie(Small());
  EXPECT_EQ(bare->bos_id(), std::nullopt);
  EXPECT_THAT(bare->eos_ids(), IsEmpty());
}

TEST(Tokenizer, ConfigurationMayAddTokens) {
  const auto small = ParseOrDie(Small());
  const TokenId next = small->vocab_size();
  const Json same = {{"content", kBos}, {"special", true}};
  const Json config = {
      {"added_tokens_decoder", {{"0", same}, {std::to_string(next), {{"content", "<new>"}}}}}};
  const auto tokenizer = ParseOrDie(Small(), config);
  EXPECT_THAT(Ids(*tokenizer, "<new>"), ElementsAre(next));
  EXPECT_EQ(Parse(Small(), {{"added_tokens_decoder", {{"5", same}}}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      Parse(Small(), {{"added_tokens_decoder", {{"0", {{"content", "<new>"}}}}}}).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, ValidatesIds) {
  const auto tokenizer = ParseOrDie(Small());
  const std::vector<TokenId> good = {0, tokenizer->vocab_size() - 1};
  EXPECT_TRUE(tokenizer->ValidateIds(good).ok());
  for (const TokenId bad : {-1, tokenizer->vocab_size(), std::numeric_limits<TokenId>::max()}) {
    const std::vector<TokenId> ids = {0, bad};
    EXPECT_EQ(tokenizer->Decode(ids).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokenizer->ValidateIds(ids).message()),
                HasSubstr(absl::StrCat("token id ", bad, " at index 1 is outside of [0, ")));
  }
}

TEST(Tokenizer, StreamHoldsBackHalfCharactersAndCanStartAgain) {
  const auto tokenizer = ParseOrDie(Small());
  std::vector<TokenId> bytes;
  for (const char c : std::string_view("\xF0\x9F\xA6\x84")) {  // U+1F984, as single bytes
    bytes.push_back(*tokenizer->TokenToId(ByteAlphabet()[static_cast<uint8_t>(c)]));
  }
  StreamingDetokenizer stream(*tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(stream.Feed(bytes[0]), "");
  EXPECT_EQ(stream.Feed(bytes[1]), "");
  EXPECT_EQ(stream.Feed(1), "");        // a special token in between is skipped
  EXPECT_EQ(stream.Feed(1 << 20), "");  // so is an id without a token
  EXPECT_EQ(stream.Feed(bytes[2]), "");
  EXPECT_EQ(stream.Feed(bytes[3]), "\U0001F984");
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_EQ(stream.Feed(bytes[0]), "");
  EXPECT_EQ(stream.Feed(bytes[0]), "\uFFFD");
  EXPECT_EQ(stream.Flush(), "\uFFFD");
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_EQ(stream.Feed(*tokenizer->TokenToId("a")), "a");
}

TEST(Tokenizer, LongInputsTakeBoundedTime) {
  const auto tokenizer = ParseOrDie(Small());
  for (const std::string unit : {"a", " ", "\n", "1", "\xFF", "中", "\x01", " \n", "a<"}) {
    std::string text;
    const size_t size = unit == "a" || unit == " " ? size_t{1} << 19 : size_t{1} << 17;
    while (text.size() < size) text += unit;
    const auto ids = tokenizer->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const auto decoded = tokenizer->Decode(*ids);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_TRUE(*decoded == ReplaceInvalidUtf8(text)) << unit;
  }
  const std::string too_long(Tokenizer::kMaxTextBytes + 1, 'a');
  EXPECT_EQ(tokenizer->Encode(too_long).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Tokenizer, PatternsThatBacktrackWithoutEndAreStopped) {
  Json tokenizer = Small();
  tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a|aa)+b";
  const auto ids = ParseOrDie(tokenizer)->Encode(std::string(200, 'a') + "cb");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted) << ids.status();
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const auto tokenizer = ParseOrDie(Small());
  const GoldenTexts texts;
  const auto alone = ParseOrDie(Small());
  std::vector<std::vector<TokenId>> expected;
  for (uint64_t seed = 0; seed < 200; ++seed) expected.push_back(Ids(*alone, texts.Random(seed)));
  std::vector<int> wrong(4);
  {
    std::vector<std::unique_ptr<Thread>> threads;
    for (int& mistakes : wrong) {
      threads.push_back(std::make_unique<Thread>("encode", [&] {
        for (uint64_t seed = 0; seed < 200; ++seed)
          mistakes += Ids(*tokenizer, texts.Random(seed)) != expected[seed];
      }));
    }
  }
  EXPECT_THAT(wrong, testing::Each(0));
}

TEST(Tokenizer, RendersChats) {
  const std::string source =
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if "
      "add_generation_prompt %}[assistant]{% endif %}{{ mood }}";
  const std::vector<ChatMessage> messages = {{"user", "hi \xFF"}, {"assistant", "yo"}};
  const auto tokenizer = ParseOrDie(Small(), {{"bos_token", kBos}, {"chat_template", source}});
  ASSERT_TRUE(tokenizer->has_chat_template());
  EXPECT_EQ(*tokenizer->RenderChat(messages, {}),
            absl::StrCat(kBos, "[user]hi \uFFFD[assistant]yo[assistant]"));
  EXPECT_EQ(*tokenizer->RenderChat(messages, {false, "{\"mood\": \"!\"}"}),
            absl::StrCat(kBos, "[user]hi \uFFFD[assistant]yo!"));
  EXPECT_EQ(tokenizer->RenderChat(messages, {true, "[1]"}).status().code(),
            absl::StatusCode::kInvalidArgument);

  const Json named = {{{"name", "tools"}, {"template", "no"}},
                      {{"name", "default"}, {"template", "yes"}}};
  EXPECT_EQ(*ParseOrDie(Small(), {{"chat_template", named}})->RenderChat(messages, {}), "yes");
  const auto none = ParseOrDie(Small());
  EXPECT_FALSE(none->has_chat_template());
  EXPECT_EQ(none->RenderChat(messages, {}).status().code(), absl::StatusCode::kFailedPrecondition);
  // A template outside the supported part leaves the tokenizer usable.
  const auto odd = ParseOrDie(Small(), {{"chat_template", "\n{% include 'x' %}"}});
  EXPECT_TRUE(odd->has_chat_template());
  EXPECT_THAT(std::string(odd->RenderChat(messages, {}).status().message()),
              HasSubstr("line 2: {% include %}"));
}

TEST(Tokenizer, LoadsADirectoryAndNamesWhatIsMissing) {
  const std::filesystem::path directory =
      std::filesystem::path(testing::TempDir()) / "baton_tokenizer_test";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directory(directory);
  EXPECT_EQ(Tokenizer::Load(directory.string()).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(directory / "tiktoken.model") << "x";
  const absl::Status tiktoken = Tokenizer::Load(directory.string()).status();
  EXPECT_EQ(tiktoken.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(tiktoken.message()), HasSubstr("tiktoken.model"));
  std::ofstream(directory / "tokenizer.json") << "{}";
  EXPECT_THAT(std::string(Tokenizer::Load(directory.string()).status().message()),
              HasSubstr(directory.string()));
  std::ofstream(directory / "tokenizer.json") << Small();
  std::ofstream(directory / "tokenizer_config.json")
      << Json{{"chat_template", "from the configuration"}, {"eos_token", kEos}};
  std::ofstream(directory / "chat_template.jinja") << "from its file";
  const auto loaded = Tokenizer::Load(directory.string());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*(*loaded)->RenderChat({}, {}), "from its file");
  EXPECT_THAT((*loaded)->eos_ids(), ElementsAre(1));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace baton::model
