#include "tests/e2e/cluster.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/check.h"
#include "base/thread.h"

namespace baton::e2e {
namespace {

std::vector<std::string> With(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// Of the processes of all workers.
template <typename Workers>
std::string AddressesOf(const Workers& workers, bool all_ranks) {
  std::string addresses;
  for (const auto& ranks : workers) {
    for (size_t rank = 0; rank < (all_ranks ? ranks.size() : 1); ++rank) {
      addresses += (addresses.empty() ? "" : ",") + ranks[rank]->grpc_address();
    }
  }
  return addresses;
}

}  // namespace

Cluster::Cluster(const ClusterOptions& options)
    : worker_program_(options.worker_program),
      group_timeout_ms_(options.group_timeout_ms * kSanitizedTestScale) {
  const std::vector<std::string> prefill =
      With({"--model=" + (options.prefill_model.empty() ? options.model : options.prefill_model),
            "--prefill.address=127.0.0.1:0", "--prefill.threads=1", "--prefill.memory_mb=64"},
           options.prefill_flags);
  const std::vector<std::string> decode =
      With({"--model=" + options.model, "--decode.address=127.0.0.1:0", "--decode.threads=1",
            "--decode.memory_mb=128"},
           options.decode_flags);
  for (int i = 0; i < options.prefill_workers; ++i) {
    prefill_.push_back(StartWorker("prefill", prefill_.size(), options.prefill_ranks, prefill));
  }
  for (int i = 0; i < options.decode_workers; ++i) {
    decode_.push_back(StartWorker("decode", decode_.size(), options.decode_ranks, decode));
  }
  for (const std::vector<Ranks>* workers : {&prefill_, &decode_}) {
    for (const Ranks& ranks : *workers) {
      for (const auto& process : ranks) BATON_CHECK_MSG(process->WaitForPorts(), process->Log());
    }
  }
  router_ = std::make_unique<BatonProcess>(
      scratch_, "router",
      std::vector<std::string>{"router", "--model=" + options.model, "--port=127.0.0.1:0",
                               "--http-port=127.0.0.1:0",
                               "--router.prefill_workers=" + AddressesOf(prefill_, false),
                               "--router.decode_workers=" + AddressesOf(decode_, true)});
  BATON_CHECK_MSG(router_->WaitForPorts(), router_->Log());
}

// Rank 0, whom all others look for, comes last. The decode ranks know all addresses, so that a
// group can go on without any of them.
Cluster::Ranks Cluster::StartWorker(const std::string& role, size_t i, int ranks,
                                    const std::vector<std::string>& flags) {
  Ranks processes(static_cast<size_t>(ranks));
  std::string meeting_places;
  for (int rank = 0; rank < (role == "decode" ? ranks : 1); ++rank) {
    meeting_places += (rank == 0 ? "127.0.0.1:" : ",127.0.0.1:") + std::to_string(FreePort());
  }
  for (size_t rank = processes.size(); rank-- > 0;) {
    std::string name = role + "-" + std::to_string(i);
    std::vector<std::string> arguments = With({role, "--http-port=127.0.0.1:0"}, flags);
    if (ranks > 1) {
      name += "." + std::to_string(rank);
      arguments = With(arguments, {"--" + role + ".ranks=" + std::to_string(ranks),
                                   "--" + role + ".rank=" + std::to_string(rank),
                                   "--" + role + ".group_addresses=" + meeting_places,
                                   "--group.timeout_ms=" + std::to_string(group_timeout_ms_)});
    }
    processes[rank] = std::make_unique<BatonProcess>(scratch_, name, arguments, worker_program_);
  }
  return processes;
}

void Cluster::RestartEnded() {
  const auto ended = [](const auto& process) { return process->HasEnded(); };
  const auto restart = [](const std::string& role, BatonProcess& process) {
    // A prefill rank without a gRPC port of its own has the same flags as before.
    if (process.grpc_port() == 0) return process.Restart({});
    process.Restart({"--" + role + ".address=" + process.grpc_address()});
  };
  std::vector<BatonProcess*> started;
  for (Ranks& ranks : prefill_) {
    if (std::none_of(ranks.begin(), ranks.end(), ended)) continue;
    for (const auto& process : ranks) started.push_back(process.get());
    for (const auto& process : ranks) restart("prefill", *process);
  }
  for (Ranks& ranks : decode_) {
    for (const auto& process : ranks) {
      if (!process->HasEnded()) continue;
      restart("decode", *process);
      started.push_back(process.get());
    }
  }
  for (BatonProcess* process : started) BATON_CHECK_MSG(process->WaitForPorts(), process->Log());
}

bool Cluster::WaitUntilReady() {
  return Eventually(30, [this] { return HttpGet(router_->http_port(), "/ready") == "ready\n"; });
}

std::unique_ptr<server::CompletionClient> Cluster::Connect() const {
  return server::ConnectCompletionClient(router_->grpc_address());
}

bool Cluster::RouterSees(const std::string& role, const BatonProcess& process) const {
  return Metric(*router_, "baton_worker_up{role=\"" + role + "\",worker=\"" +
                              process.grpc_address() + "\"}") == 1;
}

double Cluster::Experts(size_t seen_by, const std::string& name) {
  return Metric(decode(0, seen_by), "baton_experts_" + name);
}

double Cluster::PrefillPages(size_t i) {
  return Metric(prefill(i), "baton_kv_pages_used{role=\"prefill\"}");
}

double Cluster::DecodePages(size_t i, size_t rank) {
  return Metric(decode(i, rank), "baton_kv_pages_used{role=\"decode\"}");
}

Tokens TokensOf(server::CompletionClient& client, const server::ClientRequest& request) {
  Tokens streamed;
  const absl::StatusOr<server::ClientResult> result =
      client.Generate(request, [&streamed](const std::string&, const Tokens& ids) {
        streamed.insert(streamed.end(), ids.begin(), ids.end());
        return true;
      });
  EXPECT_TRUE(result.ok()) << result.status();
  if (!result.ok()) return {};
  EXPECT_EQ(streamed, result->token_ids);
  return result->token_ids;
}

std::vector<Tokens> AllAtOnce(const Cluster& cluster,
                              const std::vector<server::ClientRequest>& requests,
                              const std::function<void()>& meanwhile) {
  std::vector<Tokens> tokens(requests.size());
  std::vector<Thread> clients;
  for (size_t i = 0; i < requests.size(); ++i) {
    clients.emplace_back("client",
                         [&, i] { tokens[i] = TokensOf(*cluster.Connect(), requests[i]); });
  }
  meanwhile();
  clients.clear();
  return tokens;
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
