#ifndef BATON_TESTS_E2E_CLUSTER_H_
#define BATON_TESTS_E2E_CLUSTER_H_

// A router, prefill and decode workers as separate processes that hand off over UCX.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/client.h"
#include "tests/e2e/process.h"

namespace baton::e2e {

// The checkpoint that the tests serve.
inline constexpr char kModel[] = BATON_E2E_MODEL;

struct ClusterOptions {
  int prefill_workers = 1;
  int prefill_ranks = 1;  // processes of each worker
  int decode_workers = 1;
  int decode_ranks = 1;
  std::vector<std::string> prefill_flags = {};
  std::vector<std::string> decode_flags = {};
  std::string prefill_model = "";  // another one than `model`
  int group_timeout_ms = 2000;     // of workers of several ranks; more under sanitizers
  std::string worker_program = kBaton;
  std::string model = kModel;
};

class Cluster {
 public:
  // Returns when every process listens; CHECKs that they do.
  explicit Cluster(const ClusterOptions& options);

  bool WaitUntilReady();
  std::unique_ptr<server::CompletionClient> Connect() const;

  // A rank of worker i.
  BatonProcess& prefill(size_t i, size_t rank = 0) { return *prefill_[i][rank]; }
  BatonProcess& decode(size_t i = 0, size_t rank = 0) { return *decode_[i][rank]; }
  BatonProcess& router() { return *router_; }

  // Starts the processes of workers again that have ended, at the addresses that they had. Where
  // one of a prefill group has ended the others do, too, and are waited for.
  void RestartEnded();

  // Whether the router is connected to this worker, or rank of one.
  bool RouterSees(const std::string& role, const BatonProcess& process) const;
  // What that rank of the first decode worker says of its group's experts: baton_experts_`name`.
  double Experts(size_t seen_by, const std::string& name);

  // Pages in use, as /metrics of the worker, or of its rank, says.
  double PrefillPages(size_t i);
  double DecodePages(size_t i = 0, size_t rank = 0);

 private:
  using Ranks = std::vector<std::unique_ptr<BatonProcess>>;
  Ranks StartWorker(const std::string& role, size_t i, int ranks,
                    const std::vector<std::string>& flags);

  const std::string worker_program_;
  const int group_timeout_ms_;
  ScratchDirectory scratch_;
  std::vector<Ranks> prefill_;
  std::vector<Ranks> decode_;
  std::unique_ptr<BatonProcess> router_;
};

using Tokens = std::vector<TokenId>;

// The answers to all requests at once, with `meanwhile` beside them. A stream that ends with an
// error, or whose parts are not the whole, fails the test.
std::vector<Tokens> AllAtOnce(const Cluster& cluster,
                              const std::vector<server::ClientRequest>& requests,
                              const std::function<void()>& meanwhile);
// The answer to one.
Tokens TokensOf(server::CompletionClient& client, const server::ClientRequest& request);

// Requests that all deployments must answer alike: short and long prompts, greedy and sampled.
std::vector<server::ClientRequest> SampleRequests();

}  // namespace baton::e2e

#endif  // BATON_TESTS_E2E_CLUSTER_H_
