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

// All roles in this process, with as many ranks as `shape` says.
class Server {
 public:
  explicit Server(const Config& config)
      : files_(LoadModelFiles(config).value()),
        metrics_(MetricsOptionsFor(config, files_.description)) {
    EmbeddedParts parts = MakeEmbeddedParts(config, files_).value();
    for (const EmbeddedRank& rank : parts.prefill_ranks) {
      carriers_.insert(rank.transport->capabilities().name);
    }
    for (const EmbeddedRank& rank : parts.decode_ranks) {
      carriers_.insert(rank.transport->capabilities().name);
      if (rank.group != nullptr) decode_.push_back(rank.group->seat.get());
    }
    embedded_ = Embedded::Start(std::move(parts), clock_, metrics_, Log()).value();
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
