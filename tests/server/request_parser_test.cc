#include "server/request_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "proto/baton/v1/completion.pb.h"
#include "tests/server/stub_cluster.h"

namespace baton::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RequestParserTest : public ::testing::Test {
 protected:
  RequestParserTest() {
    model_.vocab_size = 257;
    model_.context_tokens = 100;
    model_.temperature = 0.5f;
    model_.top_p = 0.9f;
    model_.top_k = 40;
    request_.set_text("abc");
  }

  absl::StatusOr<ParsedRequest> Parse() {
    return ParseGenerateRequest(request_, model_, *tokenizer_, limits_, /*fresh_seed=*/77);
  }
  std::string Refusal() {
    const absl::StatusOr<ParsedRequest> parsed = Parse();
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << parsed.status();
    return std::string(parsed.status().message());
  }
  v1::SamplingOptions& sampling() { return *request_.mutable_sampling(); }

  std::shared_ptr<const model::Tokenizer> tokenizer_ = ByteTokenizer();
  ModelDescription model_ = StubModel();
  RequestLimits limits_{.default_max_tokens = 16};
  v1::GenerateRequest request_;
};

TEST_F(RequestParserTest, UnsetFieldsTakeTheModelsDefaults) {
  const absl::StatusOr<ParsedRequest> parsed = Parse();
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->prompt, ElementsAre(1, 2, 3));
  EXPECT_EQ(parsed->sampling.temperature, 0.5f);
  EXPECT_EQ(parsed->sampling.top_p, 0.9f);
  EXPECT_EQ(parsed->sampling.top_k, 40);
  EXPECT_EQ(parsed->sampling.max_tokens, 16);
  EXPECT_EQ(parsed->sampling.top_logprobs, -1);
  EXPECT_EQ(parsed->sampling.seed, 77u);
}

TEST_F(RequestParserTest, ZeroIsNotUnset) {
  sampling().set_temperature(0);
  sampling().set_top_k(0);
  sampling().set_seed(0);
  request_.set_top_logprobs(0);
  const absl::StatusOr<ParsedRequest> parsed = Parse();
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->sampling.temperature, 0);
  EXPECT_EQ(parsed->sampling.top_k, 0);
  EXPECT_EQ(parsed->sampling.seed, 0u);
  EXPECT_EQ(parsed->sampling.top_logprobs, 0);
}

TEST_F(RequestParserTest, EveryProblemIsNamedAtOnce) {
  sampling().set_temperature(-1);
  sampling().set_top_p(0);
  sampling().set_top_k(-3);
  sampling().set_min_p(1);
  sampling().set_repetition_penalty(0);
  sampling().set_presence_penalty(2.5);
  sampling().set_frequency_penalty(-2.5);
  sampling().set_max_tokens(98);
  sampling().set_min_tokens(-1);
  request_.set_top_logprobs(21);
  request_.add_stop("");
  request_.add_stop_token_ids(257);
  request_.set_cache_salt(std::string(257, 's'));
  const std::string message = Refusal();
  for (const char* problem :
       {"sampling.temperature is -1, must be in [0, 100]", "sampling.top_p is 0, must be in (0, 1]",
        "sampling.top_k is -3, must be in [0, 257]", "sampling.min_p is 1, must be in [0, 1)",
        "sampling.repetition_penalty is 0", "sampling.presence_penalty is 2.5",
        "sampling.frequency_penalty is -2.5",
        "sampling.max_tokens is 98, must be in [1, 97] (what the context leaves after the prompt)",
        "sampling.min_tokens is -1", "top_logprobs is 21, must be in [0, 20]",
        "the length of stop[0] is 0", "stop_token_ids[0] is 257, must be in [0, 256]",
        "the length of cache_salt is 257, must be in [0, 256] bytes"}) {
    EXPECT_THAT(message, HasSubstr(problem));
  }
}

TEST_F(RequestParserTest, NotANumberIsRefused) {
  sampling().set_temperature(std::numeric_limits<float>::quiet_NaN());
  sampling().set_presence_penalty(std::numeric_limits<float>::quiet_NaN());
  const std::string message = Refusal();
  EXPECT_THAT(message, HasSubstr("sampling.temperature"));
  EXPECT_THAT(message, HasSubstr("sampling.presence_penalty"));
}

TEST_F(RequestParserTest, ThePromptMustBeThereAndFit) {
  request_.clear_prompt();
  EXPECT_THAT(Refusal(), HasSubstr("prompt is not set"));
  request_.set_text("");
  EXPECT_THAT(Refusal(), HasSubstr("the prompt has no tokens"));
  request_.mutable_token_ids()->add_ids(-1);
  EXPECT_THAT(Refusal(), HasSubstr("token_ids.ids[0] is -1, must be in [0, 256]"));
  request_.set_text(std::string(100, 'a'));
  EXPECT_THAT(Refusal(), HasSubstr("the prompt has 100 tokens, must be in [1, 99]"));
  request_.set_text(std::string(99, 'a'));
  const absl::StatusOr<ParsedRequest> parsed = Parse();
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->sampling.max_tokens, 1);
}

TEST_F(RequestParserTest, AnotherModelIsNotFound) {
  request_.set_model("stub");
  EXPECT_TRUE(Parse().ok());
  request_.set_model("gpt");
  const absl::Status status = Parse().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"gpt\" is not served here; \"stub\" is"));
}

TEST_F(RequestParserTest, ChatsGoThroughTheTemplate) {
  v1::ChatMessage* message = request_.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  const absl::StatusOr<ParsedRequest> parsed = Parse();
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*tokenizer_->Decode(parsed->prompt), "user hi.");
  message->set_role("robot");
  EXPECT_THAT(Refusal(), HasSubstr("chat.messages[0].role is \"robot\""));
  request_.mutable_chat()->clear_messages();
  EXPECT_THAT(Refusal(), HasSubstr("the number of chat.messages is 0"));
}

TEST_F(RequestParserTest, TooManyStopsAreRefusedWithoutListingThem) {
  for (int i = 0; i < 17; ++i) request_.add_stop("");
  EXPECT_EQ(Refusal(), "the number of stop strings is 17, must be in [0, 16]");
}

}  // namespace
}  // namespace baton::server
