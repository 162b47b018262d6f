#ifndef BATON_SERVER_COMPLETION_SERVICE_H_
#define BATON_SERVER_COMPLETION_SERVICE_H_

// baton.v1.Completion over gRPC's callback API. Reactors validate, tokenize and enqueue; the loop's
// deliveries are turned into text on the loop's thread and written without waiting. A slow client
// holds back nobody: what it has not read yet is merged into one pending chunk, which max_tokens
// bounds.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "server/frontend.h"
#include "server/model_description.h"
#include "server/worker_client.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace baton::server {

struct ServerSummary {
  std::string version;
  std::string revision;
  Duration uptime;
  bool ready = false;
  bool draining = false;
  int32_t queued_requests = 0;
  int32_t running_requests = 0;
  std::string model_hash;  // as the workers have it; empty until one was connected
  std::string kv_format;   // likewise
  std::vector<WorkerSummary> workers;
};

// Everything must outlive the service, which must outlive its gRPC server. `summary` is called from
// any thread.
std::unique_ptr<grpc::Service> MakeCompletionService(const ModelDescription& model,
                                                     const model::Tokenizer& tokenizer,
                                                     Frontend& frontend,
                                                     std::function<ServerSummary()> summary);

inline constexpr char kCompletionServiceName[] = "baton.v1.Completion";
// Trailing metadata of RESOURCE_EXHAUSTED and UNAVAILABLE: milliseconds after which to try again.
inline constexpr char kRetryAfterKey[] = "retry-after-ms";

}  // namespace baton::server

#endif  // BATON_SERVER_COMPLETION_SERVICE_H_
