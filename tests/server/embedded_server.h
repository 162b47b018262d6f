#ifndef BATON_TESTS_SERVER_EMBEDDED_SERVER_H_
#define BATON_TESTS_SERVER_EMBEDDED_SERVER_H_

// All roles in the test's process, as `baton serve` makes them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "base/thread.h"
#include "server/client.h"
#include "server/main_embedded.h"

namespace baton::server {

// A checkpoint of this repository, with the demo model's tokenizer where it has none: requests come
// as token ids.
class ModelFolder {
 public:
  explicit ModelFolder(const std::string& name) {
    char path[] = "/tmp/baton-ranks-XXXXXX";
    BATON_CHECK(mkdtemp(path) != nullptr);
    path_ = path;
    const std::string source = BATON_SOURCE_DIR;
    for (const std::string& from : {source + "/models/demo", source + "/" + name}) {
      for (const auto& file : std::filesystem::directory_iterator(from)) {
        const std::filesystem::path to = path_ / file.path().filename();
        std::filesystem::remove(to);
        std::filesystem::create_symlink(file.path(), to);
      }
    }
  }
  ~ModelFolder() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Groups of so many ranks, with so many redundant experts in both, whose experts move all the time;
// as patient as a busy machine wants it.
inline Config ConfigOfRanks(const std::string& model, int prefill_ranks, int decode_ranks,
                            int redundant_experts, const std::string& transport,
                            const std::string& backend) {
  Config config = LoadConfig({}).value().config;
  config.mutable_model()->set_path(model);
  config.mutable_kernels()->set_backend(backend);
  config.mutable_handoff()->set_transport(transport);
  config.mutable_group()->set_timeout_ms(60000);
  config.mutable_prefill()->set_ranks(prefill_ranks);
  config.mutable_prefill()->set_redundant_experts(redundant_experts);
  config.mutable_decode()->set_ranks(decode_ranks);
  config.mutable_decode()->set_redundant_experts(redundant_experts);
  auto* const rebalance = config.mutable_decode()->mutable_rebalance();
  rebalance->set_interval_ms(1);
  rebalance->set_min_gain(0);
  rebalance->set_half_life_steps(1);
  return config;
}

// Prompts of these lengths, greedy and sampled in turns.
inline std::vector<ClientRequest> TokenRequests(uint64_t seed, const std::vector<int>& lengths,
                                                int32_t vocab_size, int32_t output_tokens) {
  Rng rng(seed);
  std::vector<ClientRequest> requests;
  for (const int length : lengths) {
    ClientRequest request;
    for (int i = 0; i < length; ++i) {
      request.token_ids.push_back(
          static_cast<TokenId>(rng.Below(static_cast<uint64_t>(vocab_size))));
    }
    request.max_tokens = output_tokens;
    request.ignore_eos = true;
    request.seed = rng.Below(1000);
    request.temperature = requests.size() % 2 == 0 ? 0.0f : 0.9f;
    request.top_p = 0.95f;
    requests.push_back(std::move(request));
  }
  return requests;
}

// All roles in this process, with as many ranks as the configuration says.
class Server {
 public:
  explicit Server(const Config& config, const Log& log = Log())
      : files_(LoadModelFiles(config).value()),
        metrics_(MetricsOptionsFor(config, files_.description)) {
    EmbeddedParts parts = MakeEmbeddedParts(config, files_, log).value();
    for (const EmbeddedRank& rank : parts.prefill_ranks) {
      carriers_.insert(rank.transport->capabilities().name);
    }
    for (const EmbeddedRank& rank : parts.decode_ranks) {
      carriers_.insert(rank.transport->capabilities().name);
      if (rank.group != nullptr) decode_.push_back(rank.group->seat.get());
    }
    embedded_ = Embedded::Start(std::move(parts), clock_, metrics_, log).value();
  }

  std::vector<std::vector<TokenId>> TokensOf(const std::vector<ClientRequest>& requests) {
    std::vector<std::vector<TokenId>> tokens(requests.size());
    std::vector<Thread> clients;
    for (size_t i = 0; i < requests.size(); ++i) {
      clients.emplace_back("client", [this, &requests, &tokens, i] {
        const auto result =
            MakeCompletionClient(embedded_->Channel())
                ->Generate(requests[i], [](const auto&, const auto&) { return true; });
        EXPECT_TRUE(result.ok()) << result.status();
        if (result.ok()) tokens[i] = result->token_ids;
      });
    }
    clients.clear();
    return tokens;
  }

  bool Drain() {
    embedded_->Drain();
    const Tick until = clock_.Now() + Duration::Seconds(30);
    while (!embedded_->drained() && clock_.Now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return embedded_->drained();
  }

  double Metric(const std::string& series) const {
    const std::string text = "\n" + metrics_.Render();
    const size_t at = text.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
  }

  Embedded& embedded() { return *embedded_; }
  transport::Collectives& decode_rank(size_t rank) { return *decode_[rank]; }
  // Names of the ranks' transports.
  const std::set<std::string>& carriers() const { return carriers_; }
  int32_t vocab_size() const { return files_.description.vocab_size; }

 private:
  MonotonicClock clock_;
  const ModelFiles files_;
  Metrics metrics_;
  std::vector<transport::Collectives*> decode_;
  std::set<std::string> carriers_;
  std::unique_ptr<Embedded> embedded_;
};

}  // namespace baton::server

#endif  // BATON_TESTS_SERVER_EMBEDDED_SERVER_H_
