#include "server/client.h"

#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>

#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/baton/v1/completion.grpc.pb.h"
#include "server/grpc_host.h"
#include "server/grpc_status.h"
#include "server/retry_hint.h"

namespace baton::server {
namespace {

constexpr int64_t kInfoTimeoutSeconds = 5;

v1::GenerateRequest ToProto(const ClientRequest& request) {
  v1::GenerateRequest out;
  if (!request.token_ids.empty()) {
    out.mutable_token_ids()->mutable_ids()->Assign(request.token_ids.begin(),
                                                   request.token_ids.end());
  } else if (!request.chat.empty()) {
    for (const auto& [role, content] : request.chat) {
      v1::ChatMessage* message = out.mutable_chat()->add_messages();
      message->set_role(role);
      message->set_content(content);
    }
  } else {
    out.set_text(request.text);
  }
  v1::SamplingOptions* sampling = out.mutable_sampling();
  if (request.temperature.has_value()) sampling->set_temperature(*request.temperature);
  if (request.top_p.has_value()) sampling->set_top_p(*request.top_p);
  if (request.top_k.has_value()) sampling->set_top_k(*request.top_k);
  if (request.seed.has_value()) sampling->set_seed(*request.seed);
  if (request.max_tokens.has_value()) sampling->set_max_tokens(*request.max_tokens);
  if (request.ignore_eos) sampling->set_ignore_eos(true);
  for (const std::string& stop : request.stop) out.add_stop(stop);
  if (!request.cache_salt.empty()) out.set_cache_salt(request.cache_salt);
  return out;
}

// "failed to connect to all addresses; last error: ...: Connection refused" -> "Connection
// refused".
std::string LastWords(const std::string& message) {
  const size_t colon = message.rfind(": ");
  return colon == std::string::npos ? message : message.substr(colon + 2);
}

class CompletionClientImpl final : public CompletionClient {
 public:
  CompletionClientImpl(std::shared_ptr<grpc::Channel> channel, std::string address)
      : address_(std::move(address)),
        channel_(std::move(channel)),
        stub_(v1::Completion::NewStub(channel_)) {}

  absl::StatusOr<ClientResult> Generate(const ClientRequest& request,
                                        const ChunkCallback& on_chunk) override {
    grpc::ClientContext context;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      running_ = &context;
    }
    const auto reader = stub_->Generate(&context, ToProto(request));
    ClientResult result;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.has_chunk()) {
        const v1::Chunk& chunk = response.chunk();
        const std::vector<TokenId> ids(chunk.token_ids().begin(), chunk.token_ids().end());
        result.text += chunk.text();
        result.token_ids.insert(result.token_ids.end(), ids.begin(), ids.end());
        if (!on_chunk(chunk.text(), ids)) context.TryCancel();
      } else if (response.has_finished()) {
        TakeFinished(response.finished(), &result);
      }
    }
    const grpc::Status status = reader->Finish();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      running_ = nullptr;
    }
    if (!status.ok()) return Failure(status);
    return result;
  }

  void Cancel() override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (running_ != nullptr) running_->TryCancel();
  }

  absl::StatusOr<ClientModelInfo> GetModelInfo() override {
    grpc::ClientContext context;
    context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                      gpr_time_from_seconds(kInfoTimeoutSeconds, GPR_TIMESPAN)));
    v1::GetModelInfoResponse response;
    const grpc::Status status = stub_->GetModelInfo(&context, v1::GetModelInfoRequest(), &response);
    if (!status.ok()) return Failure(status);
    return ClientModelInfo{response.name(), response.vocab_size(), response.context_tokens(),
                           response.has_chat_template()};
  }

 private:
  // What went wrong, in words for the person at the terminal.
  absl::Status Failure(const grpc::Status& status) const {
    const bool unreachable = channel_->GetState(false) != GRPC_CHANNEL_READY;
    if (unreachable && (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                        status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED)) {
      return absl::UnavailableError(absl::StrCat("no server at ", address_, " (",
                                                 LastWords(status.error_message()),
                                                 "); start one with: baton serve"));
    }
    const Duration retry_after = RetryAfter(status);
    if (retry_after <= Duration()) return FromGrpc(status);
    return absl::Status(
        static_cast<absl::StatusCode>(status.error_code()),
        absl::StrCat(status.error_message(), "; try again in ", retry_after.millis(), " ms"));
  }

  static void TakeFinished(const v1::Finished& finished, ClientResult* result) {
    result->finish = finished.reason() == v1::FINISH_REASON_LENGTH ? "length" : "stop";
    result->prompt_tokens = finished.usage().prompt_tokens();
    const v1::PromptTokensDetails& details = finished.usage().prompt_tokens_details();
    result->cached_tokens = details.cached_tokens();
    result->decode_form_tokens = details.decode_form_tokens();
    result->completion_tokens = finished.usage().completion_tokens();
    result->first_token_ms = finished.timings().first_token_ms();
    result->total_ms = finished.timings().total_ms();
    result->seed = finished.seed();
  }

  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Completion::Stub> stub_;
  std::mutex mutex_;
  grpc::ClientContext* running_ = nullptr;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<CompletionClient> MakeCompletionClient(std::shared_ptr<grpc::Channel> channel) {
  return std::make_unique<CompletionClientImpl>(std::move(channel), "this process");
}

std::unique_ptr<CompletionClient> ConnectCompletionClient(const std::string& address) {
  return std::make_unique<CompletionClientImpl>(MakeClientChannel(address), address);
}

}  // namespace baton::server
