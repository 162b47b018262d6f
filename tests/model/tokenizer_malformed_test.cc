// Malformed and unsupported files: each gives an error that names the key, and none crashes.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/model/tokenizer_testing.h"

namespace baton::model {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

absl::Status ParseText(const std::string& tokenizer_json) {
  TokenizerFiles files;
  files.tokenizer_json = tokenizer_json;
  return Tokenizer::Parse(files).status();
}

const Json& Small() {
  static const Json& small = *new Json(ReadGolden("small.json"));
  return small;
}

struct Case {
  const char* pointer;  // what to change in small.json
  Json value;
  absl::StatusCode code;
  const char* names;  // what the message must hold
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

// The case's file: the value is set at the pointer, or, if it is null, what is there is removed.
Json Changed(const Case& c) {
  Json json = Small();
  const Json::json_pointer pointer(c.pointer);
  if (c.value.is_null()) {
    json.at(pointer.parent_pointer()).erase(pointer.back());
  } else {
    json[pointer] = c.value;
  }
  return json;
}

void ExpectRefused(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.pointer) + " = " + c.value.dump());
    const absl::Status status = ParseText(Changed(c).dump());
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.names));
  }
}

TEST(MalformedTokenizer, MissingAndMistypedKeys) {
  ExpectRefused({
      {"/model", nullptr, kInvalid, "key 'model' is missing"},
      {"/model", 7, kInvalid, "key 'model' is 7, expected an object"},
      {"/model/type", nullptr, kInvalid, "key 'model.type' is missing"},
      {"/model/vocab", nullptr, kInvalid, "key 'model.vocab' is missing"},
      {"/model/vocab", Json::array(), kInvalid, "key 'model.vocab' is [], expected an object"},
      {"/model/vocab", Json::object(), kInvalid, "expected at least one token"},
      {"/model/merges", nullptr, kInvalid, "key 'model.merges' is missing"},
      {"/model/merges", "a b", kInvalid, "key 'model.merges' is \"a b\", expected an array"},
      {"/model/merges/3", 5, kInvalid, "key 'model.merges[3]' is 5"},
      {"/model/merges/3", "ab", kInvalid, "key 'model.merges[3]' is \"ab\", expected two tokens"},
      {"/model/merges/3", "a b c", kInvalid, "key 'model.merges[3]'"},
      {"/model/merges/3", {"a", 1}, kInvalid, "key 'model.merges[3]'"},
      {"/model/merges/3", {"a", "b", "c"}, kInvalid, "key 'model.merges[3]'"},
      {"/model/merges/3",
       {"a", "nowhere"},
       kInvalid,
       "key 'model.merges[3]' needs the token \"nowhere\""},
      {"/model/merges/3", {"\x01", "Q"}, kInvalid, "key 'model.merges[3]' needs the token"},
      {"/model/fuse_unk", "yes", kInvalid,
       "key 'model.fuse_unk' is \"yes\", expected true or false"},
      {"/model/byte_fallback", 1, kInvalid, "key 'model.byte_fallback'"},
      {"/model/ignore_merges", Json::array(), kInvalid, "key 'model.ignore_merges'"},
      {"/model/unk_token", "nowhere", kInvalid, "key 'model.unk_token' is \"nowhere\""},
      {"/model/unk_token", 3, kInvalid, "key 'model.unk_token' is 3, expected a string"},
      {"/pre_tokenizer", nullptr, kInvalid, "key 'pre_tokenizer' is missing"},
      {"/pre_tokenizer", "ByteLevel", kInvalid,
       "key 'pre_tokenizer' is \"ByteLevel\", expected an object"},
      {"/pre_tokenizer/pretokenizers", 1, kInvalid, "key 'pre_tokenizer.pretokenizers' is 1"},
      {"/pre_tokenizer/pretokenizers/1", 1, kInvalid, "key 'pre_tokenizer.pretokenizers[1]' is 1"},
      {"/pre_tokenizer/pretokenizers/0/type", nullptr, kInvalid,
       "pretokenizers[0].type' is missing"},
      {"/pre_tokenizer/pretokenizers/0/behavior", nullptr, kInvalid,
       "pretokenizers[0].behavior' is missing"},
      {"/pre_tokenizer/pretokenizers/0/invert", 0, kInvalid, "pretokenizers[0].invert' is 0"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "x", kInvalid,
       "pretokenizers[0].pattern' is \"x\""},
      {"/pre_tokenizer/pretokenizers/0/pattern", Json::object(), kInvalid,
       "pattern.String' is missing"},
      {"/pre_tokenizer/pretokenizers/0/pattern", {{"String", ""}}, kInvalid, "pattern.String'"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(", kInvalid, "pattern.Regex'"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?<=a+)b", kInvalid, "pattern.Regex'"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", 1, kInvalid, "pattern.Regex' is 1"},
      {"/decoder", nullptr, kInvalid, "key 'decoder' is missing"},
      {"/decoder/type", nullptr, kInvalid, "key 'decoder.type' is missing"},
      {"/decoder", Json::array(), kInvalid, "key 'decoder' is []"},
      {"/post_processor", 1, kInvalid, "key 'post_processor' is 1"},
      {"/normalizer", "NFC", kInvalid, "key 'normalizer' is \"NFC\""},
  });
}

TEST(MalformedTokenizer, IdsOutOfRangeAndTwice) {
  const Json token = Small()["added_tokens"][0];
  const auto with = [&](const char* key, const Json& value) {
    Json changed = token;
    changed[key] = value;
    return changed;
  };
  ExpectRefused({
      {"/model/vocab/a", -1, kInvalid,
       "key 'model.vocab.a' is -1, expected an integer in [0, 4194304)"},
      {"/model/vocab/a", 4194304, kInvalid, "key 'model.vocab.a' is 4194304"},
      {"/model/vocab/a", 18446744073709551615u, kInvalid,
       "key 'model.vocab.a' is 18446744073709551615"},
      {"/model/vocab/a", 1e30, kInvalid, "key 'model.vocab.a' is 1e+30"},
      {"/model/vocab/a", 1.5, kInvalid, "key 'model.vocab.a' is 1.5"},
      {"/model/vocab/a", "1", kInvalid, "key 'model.vocab.a' is \"1\""},
      {"/model/vocab/a", 20, kInvalid, "have the same id 20"},
      {"/added_tokens", 1, kInvalid, "key 'added_tokens' is 1"},
      {"/added_tokens/0", "x", kInvalid, "key 'added_tokens[0]' is \"x\""},
      {"/added_tokens/0/id", nullptr, kInvalid, "key 'added_tokens[0].id' is missing"},
      {"/added_tokens/0/id", -5, kInvalid, "key 'added_tokens[0].id' is -5"},
      {"/added_tokens/0/id", 1u << 31, kInvalid, "key 'added_tokens[0].id' is 2147483648"},
      {"/added_tokens/0/id", 99, kInvalid, "expected the id 0 that 'model.vocab' gives this token"},
      {"/added_tokens/0/content", nullptr, kInvalid, "key 'added_tokens[0].content' is missing"},
      {"/added_tokens/0/content", "", kInvalid, "key 'added_tokens[0].content'"},
      {"/added_tokens/0/content", "<other>", kInvalid, ", the next after the tokens so far"},
      {"/added_tokens/0/lstrip", 1, kInvalid, "key 'added_tokens[0].lstrip' is 1"},
      {"/added_tokens/1", token, kInvalid, "expected a token that is not listed twice"},
      {"/added_tokens/3/id", 900, kInvalid, "expected the id 700, the next"},
      {"/model/vocab/a", 700, kInvalid, "expected an id that is not \"a\"'s"},
      {"/added_tokens/0", with("color", "red"), kUnimplemented,
       "key 'added_tokens[0].color' is \"red\""},
  });
}

TEST(MalformedTokenizer, WhatIsNotSupportedIsNamed) {
  const Json nfc = {{"type", "NFC"}};
  Json deep = {{"type", "Sequence"}, {"pretokenizers", Json::array()}};
  for (int i = 0; i < 20; ++i) deep = {{"type", "Sequence"}, {"pretokenizers", {deep}}};
  const Json byte_level = Small()["pre_tokenizer"]["pretokenizers"].back();
  const char* kRegex = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
  ExpectRefused({
      {"/version", "2.0", kUnimplemented, "key 'version' is \"2.0\", supported: \"1.0\""},
      {"/surprise", 1, kUnimplemented, "key 'surprise' is 1"},
      {"/truncation", {{"max_length", 5}}, kUnimplemented, "key 'truncation'"},
      {"/padding", {{"strategy", "Fixed"}}, kUnimplemented, "key 'padding'"},
      {"/model/type", "Unigram", kUnimplemented, "key 'model.type' is \"Unigram\", supported: BPE"},
      {"/model/dropout", 0.1, kUnimplemented, "key 'model.dropout' is 0.1"},
      {"/model/continuing_subword_prefix", "##", kUnimplemented,
       "key 'model.continuing_subword_prefix'"},
      {"/model/end_of_word_suffix", "</w>", kUnimplemented, "key 'model.end_of_word_suffix'"},
      {"/normalizer", nfc, kUnimplemented, "key 'normalizer.type' is \"NFC\""},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {nfc}}},
       kUnimplemented,
       "normalizers[0].type' is \"NFC\""},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}},
       kUnimplemented,
       "key 'pre_tokenizer.type' is \"Metaspace\""},
      {"/pre_tokenizer", deep, kUnimplemented, "at most 8 nested sequences"},
      {"/pre_tokenizer/pretokenizers/0", byte_level, kUnimplemented, "must come last"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Shuffled", kUnimplemented,
       "behavior' is \"Shuffled\""},
      {kRegex, "[a&&b]", kUnimplemented, "an intersection '&&' of classes"},
      {kRegex, "[a[b]]", kUnimplemented, "a class inside a class"},
      {kRegex, "[[:alpha:]]", kUnimplemented, "a class inside a class"},
      {kRegex, "\\p{Klingon}", kUnimplemented, "the property 'Klingon'"},
      {kRegex, "\\p{C}", kUnimplemented, "the property 'C'"},
      {kRegex, "(a)\\1", kUnimplemented, "the escape \\1"},
      {kRegex, "(?<name>a)", kUnimplemented, "a group other than"},
      {kRegex, "a{1,2}+", kUnimplemented, "after {...}"},
      {kRegex, "a{,2}", kUnimplemented, "'{' that opens no"},
      {kRegex, "a**", kUnimplemented, "a quantifier of a quantifier"},
      {kRegex, "\\R", kUnimplemented, "the escape \\R"},
      {kRegex, "b(?i)a", kUnimplemented, "a leading (?i)"},
      {kRegex, "\\xE4", kUnimplemented, "escape of no character"},
      {kRegex, "[a", kUnimplemented, "a class without its ']'"},
      {kRegex, "a\\", kUnimplemented, "the escape"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       kUnimplemented,
       "post_processor.type' is \"BertProcessing\""},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", Json::array()}},
       kUnimplemented,
       "single'"},
      {"/decoder", {{"type", "Metaspace"}}, kUnimplemented, "key 'decoder.type' is \"Metaspace\""},
      {"/decoder",
       {{"type", "Sequence"}, {"decoders", {nfc}}},
       kUnimplemented,
       "decoders[0].type'"},
      {"/decoder",
       {{"type", "Sequence"}, {"decoders", Json::array()}},
       kUnimplemented,
       "key 'decoder.decoders'"},
  });
}

TEST(MalformedTokenizer, OtherFiles) {
  const auto status = [](const std::string& config, const std::string& generation) {
    TokenizerFiles files;
    files.tokenizer_json = ReadData("small.json");
    files.tokenizer_config_json = config;
    files.generation_config_json = generation;
    return std::string(Tokenizer::Parse(files).status().message());
  };
  EXPECT_THAT(status("{", ""), HasSubstr("tokenizer_config.json: no valid JSON"));
  EXPECT_THAT(status("[]", ""), HasSubstr("tokenizer_config.json: is array, expected an object"));
  EXPECT_THAT(status(R"({"bos_token": 1})", ""), HasSubstr("key 'bos_token' is 1"));
  EXPECT_THAT(status(R"({"bos_token": "nowhere"})", ""),
              HasSubstr("key 'bos_token' is \"nowhere\""));
  EXPECT_THAT(status(R"({"add_bos_token": true})", ""),
              HasSubstr("add_bos_token needs a bos_token"));
  EXPECT_THAT(status(R"({"add_bos_token": 1})", ""), HasSubstr("key 'add_bos_token' is 1"));
  EXPECT_THAT(status(R"({"added_tokens_decoder": {"x": {}}})", ""),
              HasSubstr("key 'added_tokens_decoder.x'"));
  EXPECT_THAT(status("", R"({"eos_token_id": -1})"),
              HasSubstr("generation_config.json: key 'eos_token_id' is -1"));
  EXPECT_THAT(status("", R"({"eos_token_id": [1, "x"]})"),
              HasSubstr("key 'eos_token_id[1]' is \"x\""));
}

TEST(MalformedTokenizer, TruncatedAndDamagedFilesAreRefusedOrRead) {
  const std::string whole = Small().dump();
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_FALSE(ParseText(whole.substr(0, whole.size() * i / 100)).ok());
  }
  EXPECT_FALSE(ParseText(std::string(100'000, '[')).ok());
  EXPECT_FALSE(ParseText("{\"a\":\"\xFF\"}").ok());
  EXPECT_FALSE(ParseText(std::string("{\0}", 3)).ok());
  // Single bytes changed at random: mostly refused; what still parses must work.
  for (uint64_t seed = 0; seed < 250; ++seed) {
    GoldenRandom random(seed);
    std::string damaged = whole;
    damaged[random.Below(damaged.size())] = "0\"{}[],:x-"[random.Below(10)];
    TokenizerFiles files;
    files.tokenizer_json = damaged;
    const auto tokenizer = Tokenizer::Parse(files);
    if (tokenizer.ok()) {
      EXPECT_TRUE((*tokenizer)->Encode("Hello, world! 中 123 <｜User｜>").ok());
    }
  }
}

// Every value of the file, one after the other, replaced by values of other types.
TEST(MalformedTokenizer, EveryValueOfAnotherType) {
  Json small = Small();
  for (const char* list : {"vocab", "merges"}) {  // a few of the many are enough
    while (small["model"][list].size() > 300)
      small["model"][list].erase(std::prev(small["model"][list].end()));
  }
  small["model"]["merges"] = Json::array({{"a", "b"}});
  small["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}};
  for (size_t i = 0; i < small["added_tokens"].size(); ++i) small["added_tokens"][i]["id"] = 3 + i;
  ASSERT_TRUE(ParseText(small.dump()).ok()) << ParseText(small.dump());
  const Json flat = small.flatten();
  for (const auto& [pointer, old] : flat.items()) {
    for (const Json& value : {Json(nullptr), Json(-1), Json(1e300), Json("x"), Json(true),
                              Json::array(), Json::object(), Json::array({Json::object()})}) {
      Json changed = small;
      changed[Json::json_pointer(pointer)] = value;
      const absl::Status status = ParseText(changed.dump());
      if (!status.ok()) {
        EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json: "))
            << pointer << value;
      }
    }
  }
}

}  // namespace
}  // namespace baton::model
