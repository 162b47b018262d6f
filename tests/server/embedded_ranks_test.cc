// Workers of several ranks in one process give the tokens of workers of one rank: for every number
// of ranks, over both transports, greedy and sampled, many requests at once; and their series are
// sums over the ranks.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "proto/baton/v1/worker.grpc.pb.h"
#include "tests/sanitized.h"
#include "tests/server/embedded_server.h"

namespace baton::server {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int kPages = 64;
constexpr int32_t kOutputTokens = 16 / kSanitizedTestScale + 4;

struct Shape {
  int prefill_ranks = 1;
  int decode_ranks = 1;
  int redundant_experts = 0;  // of both
  std::string transport = "inproc";
  std::string backend = "cpu";
};

void PrintTo(const Shape& shape, std::ostream* out) {
  *out << "TP" << shape.prefill_ranks << " EP" << shape.decode_ranks << " +"
       << shape.redundant_experts << " " << shape.transport << " " << shape.backend;
}

Config ConfigFor(const std::string& model, const Shape& shape) {
  Config config = ConfigOfRanks(model, shape.prefill_ranks, shape.decode_ranks,
                                shape.redundant_experts, shape.transport, shape.backend);
  config.mutable_prefill()->set_threads(1);
  config.mutable_prefill()->set_pages(kPages);
  config.mutable_prefill()->set_chunk_tokens(48);
  config.mutable_decode()->set_threads(1);
  config.mutable_decode()->set_pages(kPages);
  config.mutable_decode()->set_reserve_output_tokens(32);
  return config;
}

// Fewer tokens than ranks, within a page, chunks and pages.
std::vector<ClientRequest> Requests(int32_t vocab_size) {
  return TokenRequests(11, {1, 3, 40, 64, 130, 200}, vocab_size, kOutputTokens);
}

void ExpectSumsOverRanks(const Server& server, const Shape& shape,
                         const std::vector<ClientRequest>& requests) {
  size_t prompt_tokens = 0;
  for (const ClientRequest& request : requests) prompt_tokens += request.token_ids.size();
  EXPECT_EQ(server.Metric("baton_prefill_tokens_total"), prompt_tokens);
  EXPECT_EQ(server.Metric("baton_kv_pages_capacity{role=\"decode\"}"), kPages * shape.decode_ranks);
  EXPECT_EQ(server.Metric("baton_kv_pages_capacity{role=\"prefill\"}"), kPages);
  EXPECT_EQ(server.Metric("baton_kv_pages_used{role=\"decode\"}"), 0);
  EXPECT_EQ(server.Metric("baton_running_requests{role=\"decode\"}"), 0);
  // Each rank of prefill has sent its share, and nothing twice.
  EXPECT_EQ(server.Metric("baton_handoff_sent_bytes_total"),
            server.Metric("baton_handoff_received_bytes_total"));
  // The first token of each request comes from prefill.
  EXPECT_EQ(server.Metric("baton_batch_rows_sum{role=\"decode\"}"),
            static_cast<double>(requests.size()) * (kOutputTokens - 1));
}

using Case = std::tuple<std::string, std::vector<Shape>>;
class EmbeddedRanks : public testing::TestWithParam<Case> {};

TEST_P(EmbeddedRanks, GiveTheTokensOfOneRank) {
  const ModelFolder model(std::get<0>(GetParam()));
  std::map<std::string, std::vector<std::vector<TokenId>>> expected;  // by backend
  for (const Shape& shape : std::get<1>(GetParam())) {
    SCOPED_TRACE(testing::PrintToString(shape));
    Server server(ConfigFor(model.path(), shape));
    const std::vector<ClientRequest> requests = Requests(server.vocab_size());
    auto& one_rank = expected[shape.backend];
    if (one_rank.empty()) {
      one_rank = Server(ConfigFor(model.path(), {.backend = shape.backend})).TokensOf(requests);
    }
    const std::vector<std::vector<TokenId>> tokens = server.TokensOf(requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(tokens[i].size(), static_cast<size_t>(kOutputTokens));
      EXPECT_THAT(tokens[i], ElementsAreArray(one_rank[i]));
    }
    EXPECT_TRUE(server.Drain());
    ExpectSumsOverRanks(server, shape, requests);
    EXPECT_TRUE(server.embedded().health().ok());
  }
}

// Every TP with every EP, over one transport and the other. A sanitizer gets a part of them.
std::vector<Shape> AllShapes() {
  std::vector<Shape> shapes;
  for (const int prefill : {1, 2, 4}) {
    for (const int decode : {1, 2, 4, 8}) {
      const size_t n = shapes.size();
      shapes.push_back({prefill, decode, n % 3 == 0 ? 0 : 5, n % 2 == 0 ? "inproc" : "ucx"});
    }
  }
  if (kSanitizedTestScale > 1) shapes = {shapes[3], shapes[6], shapes[9]};
  return shapes;
}

// Three heads allow no TP of 4; six experts on four or eight ranks leave slots that hold an expert
// twice.
INSTANTIATE_TEST_SUITE_P(
    Models, EmbeddedRanks,
    testing::Values(Case{"models/demo", AllShapes()},
                    Case{"tests/data/models/bf16-lora-yarn", AllShapes()},
                    Case{"tests/data/models/fp8-ragged-yarn", {{2, 4}, {3, 8, 2, "ucx"}, {3, 3}}},
                    Case{"tests/data/models/bf16-groups-mtp",
                         {{2, 8}, {3, 2, 4}, {3, 4, 0, "ucx"}, {2, 2, 3, "inproc", "reference"}}}));

// Rounding rows on their way to experts changes tokens, on one rank as on several.
TEST(EmbeddedRanksDispatch, RoundedRowsGiveTheSameTokensOnAnyNumberOfRanks) {
  const ModelFolder model("tests/data/models/fp8-ragged-yarn");
  const auto tokens_of = [&](int decode_ranks, const char* dispatch) {
    Config config = ConfigFor(model.path(), {1, decode_ranks});
    config.mutable_decode()->set_expert_dispatch(dispatch);
    Server server(config);
    return server.TokensOf(Requests(server.vocab_size()));
  };
  const std::vector<std::vector<TokenId>> alone = tokens_of(1, "fp8");
  EXPECT_EQ(tokens_of(2, "fp8"), alone);
  EXPECT_EQ(tokens_of(4, "fp8"), alone);
  EXPECT_NE(tokens_of(1, "activations"), alone);
}

// So does rounding the rows of all products with FP8 weights, however rows travel.
TEST(EmbeddedRanksRows, InFp8GiveTheSameTokensOnAnyNumberOfRanks) {
  const ModelFolder model("tests/data/models/fp8-ragged-yarn");
  const auto tokens_of = [&](int ranks, bool fp8_activations, const char* dispatch) {
    Config config = ConfigFor(model.path(), {ranks, ranks});
    config.mutable_decode()->set_expert_dispatch(dispatch);
    config.mutable_kernels()->set_fp8_activations(fp8_activations);
    Server server(config);
    return server.TokensOf(Requests(server.vocab_size()));
  };
  const std::vector<std::vector<TokenId>> alone = tokens_of(1, true, "activations");
  EXPECT_EQ(tokens_of(2, true, "activations"), alone);
  EXPECT_EQ(tokens_of(3, true, "fp8"), alone);
  EXPECT_NE(tokens_of(1, false, "activations"), alone);
}

// Whoever shares a request compares it, so it says what bits depend on, and nothing else.
TEST(EmbeddedRanksRows, InFp8AreInTheModelsHashWhereTheyCount) {
  const auto hash_of = [](const char* name, bool fp8_activations) {
    const ModelFolder model(name);
    Config config = ConfigFor(model.path(), {});
    config.mutable_kernels()->set_fp8_activations(fp8_activations);
    return LoadModelFiles(config).value().description.hash;
  };
  EXPECT_NE(hash_of("tests/data/models/fp8-ragged-yarn", true),
            hash_of("tests/data/models/fp8-ragged-yarn", false));
  EXPECT_EQ(hash_of("tests/data/models/bf16-lora-yarn", true),
            hash_of("tests/data/models/bf16-lora-yarn", false));
}

TEST(EmbeddedRanksFailure, ABrokenGroupShowsAndEndsAtOnce) {
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Server server(ConfigFor(model.path(), {2, 4}));
  server.TokensOf(Requests(server.vocab_size()));
  EXPECT_TRUE(server.embedded().health().ok());
  server.decode_rank(2).Abort(absl::DataLossError("a stroke of lightning"));
  absl::Status health;
  for (int i = 0; i < 30'000 && health.ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    health = server.embedded().health();
  }
  EXPECT_TRUE(absl::IsDataLoss(health)) << health;
  EXPECT_THAT(std::string(health.message()), HasSubstr("rank 2: a stroke of lightning"));
}

TEST(EmbeddedRanksExperts, CanBeSeenAndMovedOnRequest) {
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Config config = ConfigFor(model.path(), {1, 2, 4});
  config.mutable_decode()->mutable_rebalance()->set_automatic(false);
  Server server(config);
  const auto stub = v1::Experts::NewStub(server.embedded().Channel());
  v1::ExpertsReply reply;
  const auto ask = [&](bool rebalance) {
    grpc::ClientContext context;
    v1::ExpertsRequest request;
    request.set_rebalance(rebalance);
    return stub->Describe(&context, request, &reply);
  };
  for (int i = 0; i < 200 && reply.last_rebalance().find("refused") != 0; ++i) {
    const grpc::Status status = ask(true);
    EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_THAT(reply.last_rebalance(), HasSubstr("no expert loads were measured yet"));
  EXPECT_EQ(reply.version(), 1u);
  EXPECT_EQ(reply.live_size(), 2);
  EXPECT_EQ(reply.slots_per_rank(), 6);  // (8 experts + 4) / 2
  ASSERT_EQ(reply.layers_size(), 2);
  EXPECT_EQ(reply.layers(1).slot_experts_size(), 12);
  EXPECT_EQ(reply.layers(1).loads_size(), 0);

  while (reply.layers(0).loads_size() == 0 && !testing::Test::HasFailure()) {
    server.TokensOf(Requests(server.vocab_size()));
    ASSERT_TRUE(ask(false).ok());
  }
  EXPECT_EQ(reply.layers(0).loads_size(), 8);
  for (int i = 0; i < 2000 && reply.last_rebalance().find("refused") == 0; ++i) {
    ASSERT_TRUE(ask(i == 0).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const std::string& ended = reply.last_rebalance();
  EXPECT_TRUE(ended.find("installed") == 0 || ended.find("not worth it") == 0) << ended;
  EXPECT_EQ(server.Metric("baton_experts_uncovered"), 0);
  const auto rebalances = [&] {
    return server.Metric("baton_expert_rebalances_total{outcome=\"installed\"}") +
           server.Metric("baton_expert_rebalances_total{outcome=\"not_worth\"}");
  };
  for (int i = 0; i < 2000 && rebalances() < 1; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(rebalances(), 1);
}

TEST(EmbeddedRanksConfig, RanksThatTheModelCannotHaveAreRefused) {
  const ModelFolder model("tests/data/models/bf16-lora-yarn");
  Config config = ConfigFor(model.path(), {8, 1});
  const ModelFiles files = LoadModelFiles(config).value();
  absl::Status status = MakeEmbeddedParts(config, files, Log()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("prefill.ranks: 8 is more than the 4 attention heads"));
  config = ConfigFor(model.path(), {4, 1});
  config.mutable_kernels()->set_pin_threads(true);
  status = MakeEmbeddedParts(config, files, Log()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("kernels.pin_threads"));
}

}  // namespace
}  // namespace baton::server
