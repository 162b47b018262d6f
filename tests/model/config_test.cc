#include "model/config.h"

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::model {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string ReadConfig(const std::string& name) {
  std::ifstream file(std::string(BATON_SOURCE_DIR) + "/tests/data/configs/" + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A valid configuration with `from` replaced by `to`.
std::string Edited(const std::string& from, const std::string& to) {
  std::string text = ReadConfig("deepseek-v3.json");
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string Error(const std::string& json) {
  const auto config = ParseModelConfig(json, "config.json");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

TEST(ModelConfigTest, ReadsDeepSeekV3) {
  const auto config = ParseModelConfig(ReadConfig("deepseek-v3.json"), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 61);
  EXPECT_EQ(config->dense_layers, 3);
  EXPECT_EQ(config->mtp_layers, 1);
  EXPECT_EQ(config->q_lora_rank, 1536);
  EXPECT_EQ(config->expert_groups, 8);
  EXPECT_EQ(config->groups_per_token, 4);
  EXPECT_EQ(config->max_positions, 163840);
  EXPECT_EQ(config->weight_format, WeightFormat::kFp8Block);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1));
  // Published: 671B parameters, 36.6B of them active (head counted, embedding not).
  EXPECT_EQ(CountParameters(*config).total, 671'026'419'200);
  EXPECT_NEAR(static_cast<double>(CountParameters(*config).active), 36.6e9, 0.05e9);
  // YaRN x40 with mscale_all_dim 1: (0.1 ln 40 + 1)^2 = 1.8739 on 1 / sqrt(192); cos and sin keep
  // their size.
  EXPECT_NEAR(SoftmaxScale(*config) * std::sqrt(192.0), 1.8739, 1e-4);
  EXPECT_EQ(RopeMagnitude(*config), 1.0);
}

TEST(ModelConfigTest, ReadsEveryKnownDeepSeekV3Config) {
  for (const char* name : {"deepseek-v3.json", "deepseek-r1.json", "moonlight-16b-a3b.json"}) {
    EXPECT_TRUE(ParseModelConfig(ReadConfig(name), name).ok()) << name;
  }
}

TEST(ModelConfigTest, ReadsMoonlightWithoutQLoraAndYarn) {
  const auto config = ParseModelConfig(ReadConfig("moonlight-16b-a3b.json"), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->q_lora_rank, 0);
  EXPECT_FALSE(config->rope.yarn);
  EXPECT_EQ(config->shared_experts, 2);
  EXPECT_EQ(config->weight_format, WeightFormat::kBF16);
  EXPECT_NEAR(static_cast<double>(CountParameters(*config).total), 16.0e9, 0.05e9);
  EXPECT_DOUBLE_EQ(SoftmaxScale(*config), 1.0 / std::sqrt(192.0));
}

// Frequencies of DeepSeek-V3 by hand: theta^(-2i/64); the ramp runs from floor(10.47) to
// ceil(22.51) pairs.
TEST(ModelConfigTest, YarnBlendsFrequencies) {
  const auto config = ParseModelConfig(ReadConfig("deepseek-v3.json"), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<double> frequencies = RopeFrequencies(*config);
  ASSERT_EQ(frequencies.size(), 32u);
  const auto plain = [](int i) { return std::pow(10000.0, -2.0 * i / 64.0); };
  EXPECT_DOUBLE_EQ(frequencies[0], 1.0);
  EXPECT_DOUBLE_EQ(frequencies[10], plain(10));
  const double smooth = 1.0 - (16.0 - 10.0) / (23.0 - 10.0);
  EXPECT_NEAR(frequencies[16], plain(16) * (smooth + (1.0 - smooth) / 40.0), 1e-15);
  EXPECT_NEAR(frequencies[23], plain(23) / 40.0, 1e-18);
  EXPECT_NEAR(frequencies[31], plain(31) / 40.0, 1e-18);
}

TEST(ModelConfigTest, RopeTableHoldsAnglesOfEachPosition) {
  const auto config = ParseModelConfig(ReadConfig("moonlight-16b-a3b.json"), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  const RopeTable table = MakeRopeTable(*config, 3);
  ASSERT_EQ(table.cos.size(), 3u * 32u);
  EXPECT_EQ(table.cos[0], 1.0f);
  EXPECT_EQ(table.sin[31], 0.0f);
  EXPECT_FLOAT_EQ(table.sin[2 * 32 + 0], static_cast<float>(std::sin(2.0)));
  EXPECT_FLOAT_EQ(table.cos[2 * 32 + 1],
                  static_cast<float>(std::cos(2.0 * std::pow(50000.0, -2.0 / 64.0))));
}

TEST(ModelConfigTest, NewerRopeSpellingMeansTheSame) {
  const std::string newer =
      Edited("\"rope_scaling\": {", "\"rope_parameters\": { \"rope_theta\": 10000,");
  const std::string text =
      std::string(newer).replace(newer.find("\"type\": \"yarn\""), 14, "\"rope_type\": \"yarn\"");
  const auto a = ParseModelConfig(text, "config.json");
  const auto b = ParseModelConfig(ReadConfig("deepseek-v3.json"), "config.json");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(RopeFrequencies(*a), RopeFrequencies(*b));
  EXPECT_EQ(SoftmaxScale(*a), SoftmaxScale(*b));
}

TEST(ModelConfigTest, AnotherArchitectureIsNamedAlone) {
  EXPECT_THAT(Error(ReadConfig("deepseek-v2-lite.json")),
              AllOf(HasSubstr("1 problem"), HasSubstr("\"deepseek_v2\""),
                    HasSubstr("supported: deepseek_v3")));
}

TEST(ModelConfigTest, ReportsEveryProblemAtOnce) {
  std::string text = Edited("\"attention_bias\": false", "\"attention_bias\": true");
  const auto replace = [&](const std::string& from, const std::string& to) {
    text.replace(text.find(from), from.size(), to);
  };
  replace("\"hidden_size\": 7168", "\"hidden_size\": \"big\"");
  replace("\"kv_lora_rank\": 512", "\"kv_lora_rank\": 500");
  replace("\"n_group\": 8", "\"n_group\": 7");
  replace("\"quant_method\": \"fp8\"", "\"quant_method\": \"gptq\"");
  replace("\"type\": \"yarn\"", "\"type\": \"linear\"");
  replace("\"vocab_size\": 129280", "\"vocab_size\": 99999999999999999999");
  EXPECT_THAT(Error(text),
              AllOf(HasSubstr("7 problems"), HasSubstr("attention_bias is true, supported: false"),
                    HasSubstr("hidden_size is \"big\", expected an integer"),
                    HasSubstr("kv_lora_rank is 500, expected a multiple of 32"),
                    HasSubstr("n_group is 7, which does not divide n_routed_experts (256)"),
                    HasSubstr("quantization_config.quant_method is \"gptq\", supported: fp8"),
                    HasSubstr("rope_scaling.type is \"linear\", supported: yarn, default"),
                    HasSubstr("vocab_size is")));
}

struct BadEdit {
  const char* from;
  const char* to;
  const char* message;
};

class BadConfigTest : public testing::TestWithParam<BadEdit> {};

TEST_P(BadConfigTest, IsRefusedByName) {
  EXPECT_THAT(Error(Edited(GetParam().from, GetParam().to)), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadConfigTest,
    testing::Values(
        BadEdit{"\"num_hidden_layers\": 61,", "", "num_hidden_layers is missing"},
        BadEdit{"\"num_hidden_layers\": 61", "\"num_hidden_layers\": 0",
                "expected an integer in [1, 4096]"},
        BadEdit{"\"num_hidden_layers\": 61", "\"num_hidden_layers\": 61.5",
                "num_hidden_layers is 61.5"},
        BadEdit{"\"first_k_dense_replace\": 3", "\"first_k_dense_replace\": 62",
                "more than num_hidden_layers"},
        BadEdit{"\"topk_group\": 4", "\"topk_group\": 9", "topk_group is 9, more than n_group (8)"},
        BadEdit{"\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 65",
                "num_experts_per_tok is 65"},
        BadEdit{"\"n_routed_experts\": 256", "\"n_routed_experts\": 8",
                "leaves one expert to a group"},
        BadEdit{"\"num_key_value_heads\": 128", "\"num_key_value_heads\": 8",
                "differs from num_attention_heads"},
        BadEdit{"\"qk_rope_head_dim\": 64", "\"qk_rope_head_dim\": 63", "expected an even number"},
        BadEdit{"\"scoring_func\": \"sigmoid\"", "\"scoring_func\": \"softmax\"",
                "supported: sigmoid"},
        BadEdit{"\"topk_method\": \"noaux_tc\"", "\"topk_method\": \"greedy\"",
                "supported: noaux_tc"},
        BadEdit{"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "supported: silu"},
        BadEdit{"\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", "moe_layer_freq is 2"},
        BadEdit{"\"rope_theta\": 10000", "\"rope_theta\": -1", "rope_theta is -1"},
        BadEdit{"\"factor\": 40,", "", "rope_scaling.factor is missing"},
        BadEdit{"\"fmt\": \"e4m3\"", "\"fmt\": \"e5m2\"", "quantization_config.fmt"},
        BadEdit{"\"activation_scheme\": \"dynamic\"", "\"activation_scheme\": \"static\"",
                "supported: dynamic"},
        BadEdit{"      128,\n      128", "64, 64",
                "weight_block_size is [64,64], supported: [128,128]"},
        BadEdit{"\"eos_token_id\": 1", "\"eos_token_id\": [1, 129280]",
                "expected token ids in [0, 129280)"},
        BadEdit{"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": null", "rms_norm_eps is missing"}));

TEST(ModelConfigTest, RefusesWhatIsNoJsonObject) {
  EXPECT_THAT(Error(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error("{\"a\": "), HasSubstr("not valid JSON"));
  EXPECT_THAT(Error("[1, 2]"), HasSubstr("no JSON object"));
  EXPECT_THAT(Error(std::string(2 << 20, ' ')), HasSubstr("at most 1048576"));
  EXPECT_THAT(Error(std::string(100'000, '[')), HasSubstr("not valid JSON"));
}

TEST(GenerationConfigTest, ReadsDefaults) {
  const auto config = ParseModelConfig(ReadConfig("deepseek-v3.json"), "config.json");
  ASSERT_TRUE(config.ok());
  const auto defaults = ParseGenerationConfig(
      R"({"eos_token_id": [1, 7], "do_sample": true, "temperature": 0.6, "top_p": 0.95, "bos_token_id": 0})",
      "generation_config.json", *config);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(1, 7));
  EXPECT_FLOAT_EQ(defaults->temperature, 0.6f);
  EXPECT_FLOAT_EQ(defaults->top_p, 0.95f);
  EXPECT_EQ(defaults->top_k, 0);
}

TEST(GenerationConfigTest, FallsBackToTheConfigAndReadsGreedy) {
  const auto config = ParseModelConfig(ReadConfig("deepseek-v3.json"), "config.json");
  ASSERT_TRUE(config.ok());
  const auto defaults = ParseGenerationConfig(R"({"do_sample": false})", "g.json", *config);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(1));
  EXPECT_EQ(defaults->temperature, 0.0f);
  const auto bad = ParseGenerationConfig(R"({"temperature": -1, "top_p": 0, "eos_token_id": "x"})",
                                         "g.json", *config);
  EXPECT_THAT(std::string(bad.status().message()),
              AllOf(HasSubstr("3 problems"), HasSubstr("temperature is -1")));
}

}  // namespace
}  // namespace baton::model
