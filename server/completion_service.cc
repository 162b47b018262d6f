#include "server/completion_service.h"

#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/baton/v1/completion.grpc.pb.h"
#include "server/completion_state.h"
#include "server/grpc_status.h"
#include "server/retry_hint.h"

namespace baton::server {
namespace {

// What every call of the service works with.
struct Context {
  const ModelDescription& model;
  const model::Tokenizer& tokenizer;
  Frontend& frontend;
  std::function<ServerSummary()> summary;
};

Duration RemainingUntilDeadline(const grpc::CallbackServerContext& call) {
  const gpr_timespec deadline = call.raw_deadline();
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) {
    return Frontend::kNoDeadline;
  }
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  return Duration::Nanos(int64_t{left.tv_sec} * 1'000'000'000 + left.tv_nsec);
}

// From the client's message to the loop's inbox: the part that Generate and Complete share. Owned
// by one call's reactor, which serialises the calls to everything but Cancel.
class CompletionCall {
 public:
  CompletionCall(Context& context, grpc::CallbackServerContext* call)
      : context_(context), call_(call) {}

  // Validates, tokenizes and enqueues. Not OK: answer with it; `stream` gets no result. The stream
  // may be called before this returns.
  grpc::Status Begin(const v1::GenerateRequest& request, std::shared_ptr<ClientStream> stream) {
    absl::Status status = Parse(request);
    if (status.ok()) status = Submit(std::move(stream));
    return ToGrpcWithHint(
        status,
        absl::IsResourceExhausted(status) ? context_.frontend.options().retry_after : Duration(),
        call_);
  }

  // Any thread, any number of times, also before Begin has returned.
  void Cancel() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(cancel_wanted_, true)) return;
    if (id_.has_value()) context_.frontend.Cancel(*id_);
  }

  // The name under which the client knows the request.
  std::string EchoId(RequestId id) const {
    return client_id_.empty() ? absl::StrCat("req-", absl::Hex(id.value(), absl::kZeroPad16))
                              : client_id_;
  }

  CompletionState& state() { return *state_; }
  grpc::CallbackServerContext* call() { return call_; }

 private:
  absl::Status Parse(const v1::GenerateRequest& request) {
    arrived_at_ = context_.frontend.clock().Now();
    absl::StatusOr<ParsedRequest> parsed =
        ParseGenerateRequest(request, context_.model, context_.tokenizer,
                             context_.frontend.options().limits, context_.frontend.FreshSeed());
    if (!parsed.ok()) {
      context_.frontend.Reject(parsed.status());
      return parsed.status();
    }
    client_id_ = parsed->client_id;
    state_.emplace(context_.tokenizer, context_.model, *std::move(parsed));
    return absl::OkStatus();
  }

  absl::Status Submit(std::shared_ptr<ClientStream> stream) {
    absl::StatusOr<RequestId> id =
        context_.frontend.Submit(state_->TakePrompt(), state_->sampling(), state_->cache_salt(),
                                 arrived_at_, RemainingUntilDeadline(*call_), std::move(stream));
    if (!id.ok()) {
      context_.frontend.Reject(id.status());
      return id.status();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    id_ = *id;
    if (cancel_wanted_) context_.frontend.Cancel(*id_);
    return absl::OkStatus();
  }

  Context& context_;
  grpc::CallbackServerContext* call_;
  Tick arrived_at_;
  std::string client_id_;
  std::optional<CompletionState> state_;

  std::mutex mutex_;
  std::optional<RequestId> id_;  // guarded by mutex_
  bool cancel_wanted_ = false;   // guarded by mutex_
};

class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                              public ClientStream,
                              public std::enable_shared_from_this<GenerateReactor> {
 public:
  GenerateReactor(Context& context, grpc::CallbackServerContext* call) : call_(context, call) {}

  void Start(const v1::GenerateRequest& request) {
    self_ = shared_from_this();
    const grpc::Status status = call_.Begin(request, self_);
    if (!status.ok()) Finish(status);
  }

  void OnTokens(const scheduler::EmitTokens& tokens) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (pending_.request_id().empty()) pending_.set_request_id(call_.EchoId(tokens.id));
    if (call_.state().Add(tokens, pending_.mutable_chunk())) call_.Cancel();
    Pump();
  }

  Outcome OnResult(const scheduler::RequestResult& result) override {
    std::lock_guard<std::mutex> lock(mutex_);
    v1::Chunk rest;
    final_.set_request_id(call_.EchoId(result.id));
    status_ = call_.state().Finish(result, &rest, final_.mutable_finished());
    if (!rest.text().empty()) {
      pending_.set_request_id(final_.request_id());
      pending_.mutable_chunk()->mutable_text()->append(rest.text());
    }
    ending_ = ToGrpcWithHint(status_, result.retry_after, call_.call());
    over_ = true;
    const Outcome outcome =
        OutcomeOf(status_, final_.finished().reason() == v1::FINISH_REASON_LENGTH
                               ? scheduler::FinishReason::kLength
                               : scheduler::FinishReason::kStop);
    Pump();
    return outcome;
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    if (!ok) {  // the client is gone; its result follows
      broken_ = true;
      call_.Cancel();
    }
    Pump();
  }

  void OnCancel() override { call_.Cancel(); }

  void OnDone() override { self_.reset(); }

 private:
  // Starts the next write, or ends the call, unless a write is under way. mutex_ is held.
  void Pump() {
    if (writing_ || finished_) return;
    if (broken_) pending_.clear_chunk();
    if (pending_.has_chunk()) {
      outgoing_ = std::move(pending_);
      pending_.Clear();
      writing_ = true;
      StartWrite(&outgoing_);
      return;
    }
    if (!over_) return;
    finished_ = true;
    if (status_.ok() && !broken_) {
      StartWriteAndFinish(&final_, grpc::WriteOptions(), grpc::Status::OK);
    } else {
      Finish(ending_);
    }
  }

  CompletionCall call_;
  std::shared_ptr<GenerateReactor> self_;  // until gRPC is done with the reactor

  std::mutex mutex_;               // guards everything below, and call_.state()
  v1::GenerateResponse pending_;   // grows while a write is under way; at most max_tokens of it
  v1::GenerateResponse outgoing_;  // being written
  v1::GenerateResponse final_;
  absl::Status status_;
  grpc::Status ending_;  // the same for the client
  bool writing_ = false;
  bool broken_ = false;
  bool over_ = false;      // the result is in final_ and status_
  bool finished_ = false;  // gRPC was told the end
};

class CompleteReactor final : public grpc::ServerUnaryReactor,
                              public ClientStream,
                              public std::enable_shared_from_this<CompleteReactor> {
 public:
  CompleteReactor(Context& context, grpc::CallbackServerContext* call,
                  v1::CompleteResponse* response)
      : call_(context, call), response_(response) {}

  void Start(const v1::GenerateRequest& request) {
    self_ = shared_from_this();
    const grpc::Status status = call_.Begin(request, self_);
    if (!status.ok()) Finish(status);
  }

  // The loop's thread alone writes the response until Finish.
  void OnTokens(const scheduler::EmitTokens& tokens) override {
    if (call_.state().Add(tokens, response_->mutable_completion())) call_.Cancel();
  }

  Outcome OnResult(const scheduler::RequestResult& result) override {
    response_->set_request_id(call_.EchoId(result.id));
    const absl::Status status = call_.state().Finish(result, response_->mutable_completion(),
                                                     response_->mutable_finished());
    const bool length = response_->finished().reason() == v1::FINISH_REASON_LENGTH;
    Finish(ToGrpcWithHint(status, result.retry_after, call_.call()));
    return OutcomeOf(status,
                     length ? scheduler::FinishReason::kLength : scheduler::FinishReason::kStop);
  }

  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  CompletionCall call_;
  v1::CompleteResponse* response_;
  std::shared_ptr<CompleteReactor> self_;
};

class CompletionService final : public v1::Completion::CallbackService {
 public:
  explicit CompletionService(Context context) : context_(std::move(context)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* call, const v1::GenerateRequest* request) override {
    auto reactor = std::make_shared<GenerateReactor>(context_, call);
    reactor->Start(*request);
    return reactor.get();
  }

  grpc::ServerUnaryReactor* Complete(grpc::CallbackServerContext* call,
                                     const v1::GenerateRequest* request,
                                     v1::CompleteResponse* response) override {
    auto reactor = std::make_shared<CompleteReactor>(context_, call, response);
    reactor->Start(*request);
    return reactor.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* call,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Answer(call, TokenizeNow(*request, response));
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* call,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Answer(call, DetokenizeNow(*request, response));
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* call,
                                         const v1::GetModelInfoRequest*,
                                         v1::GetModelInfoResponse* response) override {
    const ModelDescription& model = context_.model;
    response->set_name(model.name);
    const ServerSummary summary = context_.summary();
    response->set_hash(summary.model_hash);
    response->set_architecture(model.architecture);
    response->set_parameters(model.parameters);
    response->set_active_parameters(model.active_parameters);
    response->set_weight_format(model.weight_format);
    response->set_kv_format(summary.kv_format);
    const auto kv_bytes = model.kv_bytes_per_token.find(summary.kv_format);
    if (kv_bytes != model.kv_bytes_per_token.end()) {
      response->set_kv_bytes_per_token(kv_bytes->second);
    }
    response->set_layers(model.layers);
    response->set_vocab_size(model.vocab_size);
    response->set_context_tokens(model.context_tokens);
    response->mutable_eos_token_ids()->Assign(model.eos_token_ids.begin(),
                                              model.eos_token_ids.end());
    response->set_has_chat_template(context_.tokenizer.has_chat_template());
    return Answer(call, absl::OkStatus());
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* call,
                                          const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    const ServerSummary summary = context_.summary();
    response->set_version(summary.version);
    response->set_revision(summary.revision);
    response->set_uptime_seconds(summary.uptime.seconds());
    response->set_ready(summary.ready);
    response->set_draining(summary.draining);
    response->set_queued_requests(summary.queued_requests);
    response->set_running_requests(summary.running_requests);
    for (const WorkerSummary& worker : summary.workers) {
      v1::WorkerInfo* info = response->add_workers();
      info->set_role(worker.role);
      info->set_instance(worker.instance);
      info->set_connected(worker.connected);
      info->set_draining(worker.draining);
      info->set_total_pages(worker.total_pages);
      info->set_free_pages(worker.free_pages);
      info->set_running(worker.running);
    }
    return Answer(call, absl::OkStatus());
  }

 private:
  static grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* call,
                                          const absl::Status& status) {
    grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  absl::Status TokenizeNow(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    absl::Status named = CheckModelName(request.model(), context_.model);
    if (!named.ok()) return named;
    absl::StatusOr<std::vector<TokenId>> ids;
    switch (request.input_case()) {
      case v1::TokenizeRequest::kText:
        ids = context_.tokenizer.Encode(request.text());
        break;
      case v1::TokenizeRequest::kChat:
        ids = TokenizeChat(request.chat(), context_.tokenizer, context_.frontend.options().limits);
        break;
      case v1::TokenizeRequest::INPUT_NOT_SET:
        ids = absl::InvalidArgumentError("input is not set, must be text or chat");
        break;
    }
    if (!ids.ok()) return ids.status();
    response->mutable_ids()->Assign(ids->begin(), ids->end());
    return absl::OkStatus();
  }

  absl::Status DetokenizeNow(const v1::DetokenizeRequest& request,
                             v1::DetokenizeResponse* response) {
    absl::Status named = CheckModelName(request.model(), context_.model);
    if (!named.ok()) return named;
    const bool skip = request.has_skip_special_tokens() ? request.skip_special_tokens() : true;
    absl::StatusOr<std::string> text = context_.tokenizer.Decode(
        absl::MakeConstSpan(request.ids().data(), static_cast<size_t>(request.ids_size())), skip);
    if (!text.ok()) return text.status();
    response->set_text(*std::move(text));
    return absl::OkStatus();
  }

  Context context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCompletionService(const ModelDescription& model,
                                                     const model::Tokenizer& tokenizer,
                                                     Frontend& frontend,
                                                     std::function<ServerSummary()> summary) {
  return std::make_unique<CompletionService>(
      Context{model, tokenizer, frontend, std::move(summary)});
}

}  // namespace baton::server
