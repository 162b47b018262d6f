#ifndef BATON_TESTS_E2E_CLUSTER_H_
#define BATON_TESTS_E2E_CLUSTER_H_

// A router, prefill and decode workers as separate processes that hand off over UCX.

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
  std::vector<std::string> prefill_flags = {};
  std::vector<std::string> decode_flags = {};
  std::string prefill_model = kModel;
};

class Cluster {
 public:
  // Returns when every process listens; CHECKs that they do.
  explicit Cluster(const ClusterOptions& options);

  bool WaitUntilReady();
  std::unique_ptr<server::CompletionClient> Connect() const;

  BatonProcess& prefill(size_t i) { return *prefill_[i]; }
  BatonProcess& decode() { return *decode_; }
  BatonProcess& router() { return *router_; }

  // Pages in use, as the worker's /metrics says.
  double PrefillPages(size_t i);
  double DecodePages();

 private:
  ScratchDirectory scratch_;
  std::vector<std::unique_ptr<BatonProcess>> prefill_;
  std::unique_ptr<BatonProcess> decode_;
  std::unique_ptr<BatonProcess> router_;
};

// Requests that all deployments must answer alike: short and long prompts, greedy and sampled.
std::vector<server::ClientRequest> SampleRequests();

}  // namespace baton::e2e

#endif  // BATON_TESTS_E2E_CLUSTER_H_
