#include "tests/e2e/cluster.h"

#include "base/check.h"

namespace baton::e2e {
namespace {

std::vector<std::string> With(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

}  // namespace

Cluster::Cluster(const ClusterOptions& options) {
  for (int i = 0; i < options.prefill_workers; ++i) {
    prefill_.push_back(std::make_unique<BatonProcess>(
        scratch_, "prefill-" + std::to_string(i),
        With({"prefill", "--model=" + options.prefill_model, "--prefill.address=127.0.0.1:0",
              "--http-port=127.0.0.1:0", "--prefill.threads=1", "--prefill.memory_mb=64"},
             options.prefill_flags)));
  }
  decode_ = std::make_unique<BatonProcess>(
      scratch_, "decode",
      With({"decode", std::string("--model=") + kModel, "--decode.address=127.0.0.1:0",
            "--http-port=127.0.0.1:0", "--decode.threads=1", "--decode.memory_mb=128"},
           options.decode_flags));
  std::string prefill_addresses;
  for (const auto& prefill : prefill_) {
    BATON_CHECK_MSG(prefill->WaitForPorts(), prefill->Log());
    prefill_addresses += (prefill_addresses.empty() ? "" : ",") + prefill->grpc_address();
  }
  BATON_CHECK_MSG(decode_->WaitForPorts(), decode_->Log());
  router_ = std::make_unique<BatonProcess>(
      scratch_, "router",
      std::vector<std::string>{"router", std::string("--model=") + kModel, "--port=127.0.0.1:0",
                               "--http-port=127.0.0.1:0",
                               "--router.prefill_workers=" + prefill_addresses,
                               "--router.decode_workers=" + decode_->grpc_address()});
  BATON_CHECK_MSG(router_->WaitForPorts(), router_->Log());
}

bool Cluster::WaitUntilReady() {
  return Eventually(30, [this] { return HttpGet(router_->http_port(), "/ready") == "ready\n"; });
}

std::unique_ptr<server::CompletionClient> Cluster::Connect() const {
  return server::ConnectCompletionClient(router_->grpc_address());
}

double Cluster::PrefillPages(size_t i) {
  return MetricValue(HttpGet(prefill_[i]->http_port(), "/metrics"),
                     "baton_kv_pages_used{role=\"prefill\"}");
}

double Cluster::DecodePages() {
  return MetricValue(HttpGet(decode_->http_port(), "/metrics"),
                     "baton_kv_pages_used{role=\"decode\"}");
}

std::vector<server::ClientRequest> SampleRequests() {
  const std::string sentence = "The command prints the name of the file and exits. ";
  std::string page;
  for (int i = 0; i < 30; ++i) page += sentence;
  std::vector<server::ClientRequest> requests;
  for (const std::string& text : {std::string("The"), sentence, page}) {
    server::ClientRequest greedy;
    greedy.text = text;
    greedy.max_tokens = 48;
    greedy.temperature = 0.0f;
    greedy.seed = 0;
    requests.push_back(greedy);
    for (uint64_t seed : {1u, 2u}) {
      server::ClientRequest sampled = greedy;
      sampled.temperature = 0.9f;
      sampled.top_p = 0.95f;
      sampled.top_k = 40;
      sampled.seed = seed;
      requests.push_back(sampled);
    }
  }
  return requests;
}

}  // namespace baton::e2e
