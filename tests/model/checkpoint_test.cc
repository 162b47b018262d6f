#include "model/checkpoint.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, 'x');
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string Error(const std::string& file) {
  const auto tensors = ParseSafetensors(file, "m.safetensors");
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tensors.status().message());
}

TEST(SafetensorsTest, ReadsTensorsInPlace) {
  const std::string file =
      File("{\"__metadata__\":{\"format\":\"pt\"},\"a\":" + Entry("BF16", "[2,3]", "[0,12]") +
               ",\"b\":" + Entry("F32", "[]", "[12,16]") +
               ",\"empty\":" + Entry("F32", "[0,7]", "[16,16]") + "}",
           16);
  const auto tensors = ParseSafetensors(file, "m");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ(DescribeTensor(tensors->at("a")), "BF16[2, 3]");
  EXPECT_EQ(tensors->at("a").data, file.data() + file.size() - 16);
  EXPECT_EQ(tensors->at("b").bytes, 4u);
  EXPECT_EQ(tensors->at("empty").bytes, 0u);
}

struct BadHeader {
  const char* name;
  std::string header;
  size_t data_bytes;
  const char* message;
};

class BadSafetensorsTest : public testing::TestWithParam<BadHeader> {};

TEST_P(BadSafetensorsTest, IsRefusedByName) {
  EXPECT_THAT(Error(File(GetParam().header, GetParam().data_bytes)),
              AllOf(HasSubstr("m.safetensors"), HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Headers, BadSafetensorsTest,
    testing::Values(
        BadHeader{"NotJson", "{\"a\":", 0, "no valid JSON object"},
        BadHeader{"NotAnObject", "[]", 0, "no valid JSON object"},
        BadHeader{"DeepNesting", std::string(200'000, '['), 0, "no valid JSON object"},
        BadHeader{"EntryNotAnObject", "{\"a\":7}", 0, "tensor a is not an object"},
        BadHeader{"NoDType", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "has no dtype"},
        BadHeader{"NoShape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
                  "has no shape"},
        BadHeader{"NoOffsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1,
                  "has no data_offsets"},
        BadHeader{"UnknownDType", "{\"a\":" + Entry("F7", "[1]", "[0,1]") + "}", 1,
                  "unknown dtype \"F7\""},
        BadHeader{"NegativeShape", "{\"a\":" + Entry("U8", "[-1]", "[0,1]") + "}", 1,
                  "impossible shape"},
        BadHeader{"FractionalShape", "{\"a\":" + Entry("U8", "[1.5]", "[0,1]") + "}", 1,
                  "impossible shape"},
        BadHeader{
            "ShapeOverflow",
            "{\"a\":" + Entry("U8", "[4611686018427387904,4611686018427387904,16]", "[0,1]") + "}",
            1, "impossible shape"},
        BadHeader{"BytesOverflow", "{\"a\":" + Entry("F64", "[4611686018427387904]", "[0,1]") + "}",
                  1, "but its data_offsets span 1 bytes"},
        BadHeader{"ShapeTooSmall", "{\"a\":" + Entry("F32", "[2]", "[0,4]") + "}", 4,
                  "F32[2], 2 elements of 4 bytes, but its data_offsets span 4 bytes"},
        BadHeader{"OffsetsBackwards", "{\"a\":" + Entry("U8", "[1]", "[2,1]") + "}", 4,
                  "lies at bytes [2, 1)"},
        BadHeader{"OffsetsBehindTheEnd", "{\"a\":" + Entry("U8", "[8]", "[0,8]") + "}", 7,
                  "truncated file?"},
        BadHeader{
            "OffsetsHuge",
            "{\"a\":" + Entry("U8", "[1]", "[18446744073709551614,18446744073709551615]") + "}", 1,
            "truncated file?"},
        BadHeader{"OffsetsNegative", "{\"a\":" + Entry("U8", "[1]", "[-1,0]") + "}", 1,
                  "expected [begin, end]"},
        BadHeader{"OffsetsNotTwo", "{\"a\":" + Entry("U8", "[1]", "[0]") + "}", 1,
                  "expected [begin, end]"},
        BadHeader{
            "Overlap",
            "{\"a\":" + Entry("U8", "[4]", "[0,4]") + ",\"b\":" + Entry("U8", "[4]", "[2,6]") + "}",
            6, "tensor b overlaps tensor a"},
        BadHeader{
            "Hole",
            "{\"a\":" + Entry("U8", "[2]", "[0,2]") + ",\"b\":" + Entry("U8", "[2]", "[4,6]") + "}",
            6, "2 bytes between tensor a and tensor b belong to no tensor"},
        BadHeader{"TrailingBytes", "{\"a\":" + Entry("U8", "[2]", "[0,2]") + "}", 5,
                  "3 bytes after tensor a belong to no tensor"},
        BadHeader{
            "DuplicateName",
            "{\"a\":" + Entry("U8", "[2]", "[0,2]") + ",\"a\":" + Entry("U8", "[2]", "[0,2]") + "}",
            2, "tensor a is listed twice"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SafetensorsTest, RefusesBadLengths) {
  EXPECT_THAT(Error("short"), HasSubstr("not a safetensors file"));
  EXPECT_THAT(Error(std::string(8, '\xff') + "{}"), HasSubstr("at most 100000000"));
  std::string cut = File("{\"a\":" + Entry("U8", "[1]", "[0,1]") + "}", 1);
  EXPECT_THAT(Error(cut.substr(0, 20)), HasSubstr("truncated?"));
}

TEST(SafetensorsTest, ReportsEveryProblemAtOnce) {
  EXPECT_THAT(Error(File("{\"a\":7,\"b\":" + Entry("F7", "[1]", "[0,1]") + "}", 1)),
              AllOf(HasSubstr("2 problems"), HasSubstr("tensor a"), HasSubstr("tensor b")));
}

// Every prefix of a sound file and every single changed byte of its header is either refused or
// sound: never a crash.
TEST(SafetensorsTest, SurvivesDamage) {
  const std::string header = "{\"a\":" + Entry("BF16", "[2,3]", "[0,12]") +
                             ",\"b\":" + Entry("F32", "[1]", "[12,16]") + "}";
  const std::string file = File(header, 16);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(ParseSafetensors(std::string_view(file).substr(0, size), "m").ok()) << size;
  }
  for (size_t i = 0; i < 8 + header.size(); ++i) {
    for (const char byte : {'\0', '\xff', '9', '"', '[', '}'}) {
      std::string damaged = file;
      damaged[i] = byte;
      const auto tensors = ParseSafetensors(damaged, "m");
      if (!tensors.ok()) continue;
      for (const auto& [name, tensor] : *tensors) {
        EXPECT_GE(tensor.data, damaged.data());
        EXPECT_LE(tensor.data + tensor.bytes, damaged.data() + damaged.size());
      }
    }
  }
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() /
                 ("baton_checkpoint_test." + std::to_string(getpid()) + "." +
                  testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(directory_ / name, std::ios::binary) << content;
  }
  std::string OpenError() {
    const auto checkpoint = Checkpoint::Open(directory_.string());
    EXPECT_FALSE(checkpoint.ok());
    return std::string(checkpoint.status().message());
  }

  const std::string shard_a_ = File("{\"a\":" + Entry("U8", "[4]", "[0,4]") + "}", 4);
  const std::string shard_b_ = File("{\"b\":" + Entry("U8", "[2]", "[0,2]") + "}", 2);
  std::filesystem::path directory_;
};

TEST_F(CheckpointTest, OpensOneFileAndShards) {
  Write("model.safetensors", shard_a_);
  auto one = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_NE(one->Find("a"), nullptr);
  EXPECT_EQ(one->Find("b"), nullptr);

  Write("s1.safetensors", shard_a_);
  Write("s2.safetensors", shard_b_);
  Write("model.safetensors.index.json",
        R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  const auto two = Checkpoint::Open(directory_.string());
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->tensor_bytes(), 6u);
  EXPECT_THAT(two->file_name(*two->Find("b")), HasSubstr("s2.safetensors"));
}

TEST_F(CheckpointTest, ReportsProblemsOfAllShardsAtOnce) {
  Write("s1.safetensors", shard_a_);
  Write("s2.safetensors", shard_b_.substr(0, 30));
  Write("model.safetensors.index.json",
        R"({"weight_map":{"other":"s1.safetensors","b":"s2.safetensors","c":"s3.safetensors"}})");
  EXPECT_THAT(
      OpenError(),
      AllOf(HasSubstr("s1.safetensors: tensor other is missing; the index says it is here"),
            HasSubstr("s1.safetensors: tensor a is not in the index"), HasSubstr("s2.safetensors"),
            HasSubstr("truncated"), HasSubstr("s3.safetensors: cannot open")));
}

TEST_F(CheckpointTest, RefusesBadIndexes) {
  Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(OpenError(), HasSubstr("weight_map is missing or empty"));
  Write("model.safetensors.index.json",
        R"({"weight_map":{"a":"../a.safetensors","b":"/etc/passwd","c":7}})");
  EXPECT_THAT(OpenError(),
              AllOf(HasSubstr("3 problems"), HasSubstr("a file in the same directory")));
  Write("model.safetensors.index.json", "not json");
  EXPECT_THAT(OpenError(), HasSubstr("not valid JSON"));
}

TEST_F(CheckpointTest, SaysWhatADirectoryLacks) {
  EXPECT_THAT(OpenError(),
              HasSubstr("holds neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_EQ(Checkpoint::Open("/nonexistent").status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directories(directory_ / "model.safetensors");
  EXPECT_THAT(OpenError(), HasSubstr("not a regular file"));
}

TEST_F(CheckpointTest, HashTellsModelsApart) {
  const auto hash = [&](const std::string& content, const std::string& config) {
    Write("model.safetensors", content);
    return Checkpoint::Open(directory_.string())->Hash(config);
  };
  const std::string base = hash(shard_a_, "{}");
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(hash(shard_a_, "{}"), base);
  EXPECT_NE(hash(shard_a_, "{ }"), base);
  EXPECT_NE(hash(shard_b_, "{}"), base);
  std::string retrained = shard_a_;
  retrained.back() = 'y';
  EXPECT_NE(hash(retrained, "{}"), base);
}

}  // namespace
}  // namespace baton::model
