#ifndef BATON_SERVER_CLIENT_H_
#define BATON_SERVER_CLIENT_H_

// The client side of baton.v1.Completion for Baton's own tools (complete, chat, bench): blocking
// calls, one thread each.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ids.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace baton::server {

struct ClientRequest {
  // One of the three.
  std::string text;
  std::vector<TokenId> token_ids;
  std::vector<std::pair<std::string, std::string>> chat;  // role, content

  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
  std::optional<int32_t> max_tokens;
  bool ignore_eos = false;
  std::string cache_salt;
  std::vector<std::string> stop;
};

struct ClientResult {
  std::string text;
  std::vector<TokenId> token_ids;
  std::string finish;  // "stop" or "length"
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;       // of the prompt, not computed for this request
  int32_t decode_form_tokens = 0;  // of the prompt, taken from pages of generated tokens
  int32_t completion_tokens = 0;
  double first_token_ms = 0;  // as the server measured it
  double total_ms = 0;
  uint64_t seed = 0;
};

struct ClientModelInfo {
  std::string name;
  int32_t vocab_size = 0;
  int32_t context_tokens = 0;
  bool has_chat_template = false;
};

// Called on the calling thread for each chunk; false cancels the request.
using ChunkCallback =
    std::function<bool(const std::string& text, const std::vector<TokenId>& token_ids)>;

class CompletionClient {
 public:
  virtual ~CompletionClient() = default;

  // Streams one completion. The server's status when it fails, with its retry hint in words;
  // UNAVAILABLE that names the address when there is no server; CANCELLED when the callback or
  // Cancel ended it.
  virtual absl::StatusOr<ClientResult> Generate(const ClientRequest& request,
                                                const ChunkCallback& on_chunk) = 0;
  // Ends the Generate that runs now, from another thread.
  virtual void Cancel() = 0;

  // UNAVAILABLE when nobody answers within a few seconds.
  virtual absl::StatusOr<ClientModelInfo> GetModelInfo() = 0;
};

std::unique_ptr<CompletionClient> MakeCompletionClient(std::shared_ptr<grpc::Channel> channel);
std::unique_ptr<CompletionClient> ConnectCompletionClient(const std::string& address);

}  // namespace baton::server

#endif  // BATON_SERVER_CLIENT_H_
