#include "model/loaded_model.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/memory_plan.h"
#include "tests/model/model_harness.h"

namespace baton::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A copy of a committed checkpoint that a test may damage.
class LoadModelTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Copy(const std::string& name) {
    directory_ = std::filesystem::temp_directory_path() /
                 ("baton_load_model_test." + std::to_string(getpid()));
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    for (const auto& entry : std::filesystem::directory_iterator(TestModelDirectory(name))) {
      if (entry.path().filename() != "golden.safetensors")
        std::filesystem::copy(entry.path(), directory_);
    }
  }
  // Replaces every occurrence; in safetensors only by a text of equal length, so that the header
  // keeps its size.
  void Replace(const std::string& file, const std::string& from, const std::string& to) {
    std::ifstream in(directory_ / file, std::ios::binary);
    std::stringstream content;
    content << in.rdbuf();
    std::string text = content.str();
    ASSERT_NE(text.find(from), std::string::npos);
    for (size_t at = text.find(from); at != std::string::npos;
         at = text.find(from, at + to.size())) {
      text.replace(at, from.size(), to);
    }
    std::ofstream(directory_ / file, std::ios::binary) << text;
  }
  std::string LoadError() {
    const auto model = LoadModel(directory_.string());
    EXPECT_FALSE(model.ok());
    return std::string(model.status().message());
  }

  std::filesystem::path directory_;
};

TEST_F(LoadModelTest, LoadsEveryTestModel) {
  for (const std::string& name : TestModelNames()) {
    const auto model = LoadModel(TestModelDirectory(name) + "/");
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->name, name);
    EXPECT_EQ((*model)->hash.size(), 32u);
    EXPECT_EQ((*model)->weights.layers.size(), static_cast<size_t>((*model)->config.layers));
    EXPECT_EQ((*model)->weights.mtp_layers, (*model)->config.mtp_layers);
  }
}

TEST_F(LoadModelTest, ParameterCountIsThatOfTheFiles) {
  // No FP8 scales and no MTP layer in this one: two bytes a weight, but four a selection bias.
  const auto model = LoadTestModel("bf16-lora-yarn");
  const int64_t biases =
      int64_t{model->config.layers - model->config.dense_layers} * model->config.routed_experts;
  EXPECT_EQ(static_cast<int64_t>(model->checkpoint.tensor_bytes()),
            2 * CountParameters(model->config).total + 2 * biases);
}

TEST_F(LoadModelTest, NamesMissingAndForeignTensors) {
  Copy("bf16-lora-yarn");
  Replace("model.safetensors", "layers.1.self_attn.q_a_proj", "layers.1.self_attn.q_x_proj");
  Replace("model.safetensors", "layers.2.mlp.experts.5.up_proj", "layers.2.mlp.experts.9.up_proj");
  EXPECT_THAT(LoadError(),
              AllOf(HasSubstr("4 problems"),
                    HasSubstr("tensor model.layers.1.self_attn.q_a_proj.weight is missing, "
                              "expected BF16 or F32[48, 64]"),
                    HasSubstr("tensor model.layers.1.self_attn.q_x_proj.weight (BF16[48, 64]) has "
                              "no place in this model"),
                    HasSubstr("tensor model.layers.2.mlp.experts.5.up_proj.weight is missing"),
                    HasSubstr("model.layers.2.mlp.experts.9.up_proj.weight")));
}

TEST_F(LoadModelTest, NamesWrongShapes) {
  Copy("bf16-lora-yarn");
  Replace("config.json", "\"vocab_size\": 256", "\"vocab_size\": 255");
  EXPECT_THAT(LoadError(), AllOf(HasSubstr("2 problems"),
                                 HasSubstr("model.safetensors: tensor model.embed_tokens.weight "
                                           "is BF16[256, 64], expected BF16 or F32[255, 64]"),
                                 HasSubstr("lm_head.weight")));
}

TEST_F(LoadModelTest, NamesWrongDTypes) {
  Copy("bf16-lora-yarn");
  Replace("model.safetensors", "\"dtype\":\"BF16\"", "\"dtype\":\"F16\" ");
  EXPECT_THAT(
      LoadError(),
      HasSubstr("tensor model.embed_tokens.weight is F16[256, 64], expected BF16 or F32[256, 64]"));
}

TEST_F(LoadModelTest, Fp8WeightsNeedTheConfigToSaySo) {
  Copy("fp8-ragged-yarn");
  Replace("config.json", "\"quantization_config\"", "\"quantization_confix\"");
  EXPECT_THAT(LoadError(),
              HasSubstr("kv_b_proj.weight is F8_E4M3[192, 160], expected BF16 or F32[192, 160]"));
}

TEST_F(LoadModelTest, Fp8WeightsNeedScalesOfTheRightShape) {
  Copy("fp8-ragged-yarn");
  Replace("model.safetensors",
          "layers.0.mlp.up_proj.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[2,2]",
          "layers.0.mlp.up_proj.weight_scale_inv\":{\"dtype\":\"F32\",\"shape\":[4,1]");
  EXPECT_THAT(LoadError(), HasSubstr("up_proj.weight_scale_inv is F32[4, 1], expected F32[2, 2]"));
}

TEST_F(LoadModelTest, MtpLayerMayBeLeftOutButNotHalf) {
  Copy("bf16-groups-mtp");
  Replace("model.safetensors", "layers.3.eh_proj", "layers.3.eh_prox");
  EXPECT_THAT(LoadError(),
              AllOf(HasSubstr("2 problems"), HasSubstr("model.layers.3.eh_proj.weight is missing"),
                    HasSubstr("model.layers.3.eh_prox.weight")));
  Copy("bf16-lora-yarn");
  Replace("config.json", "\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
  const auto model = LoadModel(directory_.string());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->weights.mtp_layers, 0);
}

TEST_F(LoadModelTest, GenerationConfigIsOptional) {
  Copy("bf16-lora-yarn");
  std::ofstream(directory_ / "generation_config.json")
      << R"({"temperature": 0.5, "eos_token_id": [3, 4]})";
  auto model = LoadModel(directory_.string());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->generation.temperature, 0.5f);
  EXPECT_THAT((*model)->generation.eos_token_ids, testing::ElementsAre(3, 4));
  std::ofstream(directory_ / "generation_config.json") << "{";
  EXPECT_THAT(LoadError(), HasSubstr("generation_config.json: not valid JSON"));
}

TEST_F(LoadModelTest, MissingDirectoryIsNotFound) {
  const auto model = LoadModel("/nonexistent");
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("/nonexistent/config.json"));
}

TEST(MemoryPlanTest, AddsUpAndFitsBudgets) {
  const auto model = LoadTestModel("bf16-lora-yarn");
  RunnerOptions options;
  options.total_pages = 100;
  const MemoryPlan plan = PlanMemory(*model, options);
  EXPECT_EQ(plan.kv_token_bytes, 3 * (32 + 8) * 2);
  EXPECT_EQ(plan.kv_page_bytes, 64 * plan.kv_token_bytes);
  EXPECT_EQ(plan.kv_bytes, 100 * plan.kv_page_bytes);
  EXPECT_EQ(plan.weight_bytes, static_cast<int64_t>(model->checkpoint.tensor_bytes()));
  // Exactly enough, and one byte less.
  EXPECT_EQ(PagesThatFit(*model, options, plan.private_bytes()), 100);
  EXPECT_EQ(PagesThatFit(*model, options, plan.private_bytes() - 1), 99);
  EXPECT_EQ(PagesThatFit(*model, options, 1000), 0);
}

}  // namespace
}  // namespace baton::model
