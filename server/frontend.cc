#include "server/frontend.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::server {

using scheduler::FinishReason;

Outcome OutcomeOf(const absl::Status& status, FinishReason reason) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return reason == FinishReason::kLength ? Outcome::kLength : Outcome::kStop;
    case absl::StatusCode::kCancelled:
      return Outcome::kCancelled;
    case absl::StatusCode::kInvalidArgument:
      return Outcome::kInvalidArgument;
    case absl::StatusCode::kNotFound:
      return Outcome::kNotFound;
    case absl::StatusCode::kResourceExhausted:
      return Outcome::kResourceExhausted;
    case absl::StatusCode::kDeadlineExceeded:
      return Outcome::kDeadlineExceeded;
    case absl::StatusCode::kUnavailable:
      return Outcome::kUnavailable;
    default:
      return Outcome::kInternal;
  }
}

Frontend::Frontend(const FrontendOptions& options, uint32_t id_space, Clock& clock,
                   FrontendInbox& inbox, const RouterMetrics& metrics)
    : options_(options),
      clock_(clock),
      inbox_(inbox),
      metrics_(metrics),
      next_id_(uint64_t{id_space} << 32 | 1) {}

absl::StatusOr<RequestId> Frontend::Submit(std::vector<TokenId> prompt,
                                           const scheduler::SamplingParams& sampling,
                                           const std::string& cache_salt, Tick arrived_at,
                                           Duration remaining,
                                           std::shared_ptr<ClientStream> stream) {
  if (remaining <= Duration()) {
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  const size_t prompt_tokens = prompt.size();
  scheduler::Arrived arrived;
  arrived.prompt = std::move(prompt);
  arrived.sampling = sampling;
  arrived.cache_salt = cache_salt;
  arrived.arrived_at = arrived_at;
  arrived.deadline =
      arrived_at + (remaining == kNoDeadline ? options_.default_duration
                                             : std::min(remaining, options_.max_duration));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (open_.size() >= static_cast<size_t>(options_.max_open_requests)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the server has ", open_.size(), " open requests, its limit"));
    }
    arrived.id = RequestId(next_id_++);
    // Open before the loop can deliver anything.
    open_.emplace(arrived.id, Open{std::move(stream), Tick(), false});
  }
  const RequestId id = arrived.id;
  if (!inbox_.TryArrive(std::move(arrived))) {
    std::lock_guard<std::mutex> lock(mutex_);
    open_.erase(id);
    return absl::ResourceExhaustedError("the server's queue of new requests is full");
  }
  metrics_.prompt_tokens_total.Add(static_cast<double>(prompt_tokens));
  return id;
}

void Frontend::Cancel(RequestId id) {
  if (inbox_.TryPush(scheduler::ClientCancelled{id})) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (open_.count(id) != 0) unsent_cancels_.push_back(id);
}

void Frontend::Flush() {
  std::lock_guard<std::mutex> lock(mutex_);
  while (!unsent_cancels_.empty() &&
         inbox_.TryPush(scheduler::ClientCancelled{unsent_cancels_.back()})) {
    unsent_cancels_.pop_back();
  }
}

void Frontend::Reject(const absl::Status& status) {
  metrics_.requests_total[OutcomeOf(status, FinishReason::kError)].Add();
}

void Frontend::Deliver(const scheduler::EmitTokens& tokens) {
  const Tick now = clock_.Now();
  std::shared_ptr<ClientStream> stream;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = open_.find(tokens.id);
    if (found == open_.end()) return;
    Open& open = found->second;
    for (size_t i = open.has_token ? 0 : 1; i < tokens.tokens.size(); ++i) {
      // Tokens of one message arrive at once: the first ends a gap, the others follow without one.
      metrics_.itl_seconds.Observe(i == 0 ? (now - open.last_token).seconds() : 0.0);
    }
    open.last_token = now;
    open.has_token = true;
    stream = open.stream;
  }
  metrics_.output_tokens_total.Add(static_cast<double>(tokens.tokens.size()));
  stream->OnTokens(tokens);
}

void Frontend::Deliver(const scheduler::RequestResult& result) {
  std::shared_ptr<ClientStream> stream;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = open_.find(result.id);
    BATON_CHECK_MSG(found != open_.end(), "a result for a request that is not open");
    stream = std::move(found->second.stream);
    open_.erase(found);
    std::erase(unsent_cancels_, result.id);
  }
  RecordResult(result, stream->OnResult(result));
}

void Frontend::RecordResult(const scheduler::RequestResult& result, Outcome outcome) {
  metrics_.requests_total[outcome].Add();
  metrics_.e2e_seconds.Observe(result.total.seconds());
  metrics_.request_prompt_tokens.Observe(result.prompt_tokens);
  metrics_.request_output_tokens.Observe(result.output_tokens);
  if (!result.has_first_token) return;
  metrics_.ttft_seconds.Observe(result.ttft.seconds());
  const auto& stages = metrics_.ttft_stage_seconds;
  stages[TtftStage::kQueue].Observe(result.stages.queue.seconds());
  stages[TtftStage::kPrefillWait].Observe(result.stages.prefill_wait.seconds());
  stages[TtftStage::kPrefill].Observe(result.stages.prefill.seconds());
  stages[TtftStage::kTransferExposed].Observe(result.stages.transfer_exposed.seconds());
  stages[TtftStage::kDecodeWait].Observe(result.stages.decode_wait.seconds());
  const bool complete = outcome == Outcome::kStop || outcome == Outcome::kLength;
  if (complete && result.output_tokens > 1) {
    metrics_.tpot_seconds.Observe((result.total - result.ttft).seconds() /
                                  (result.output_tokens - 1));
  }
}

uint64_t Frontend::FreshSeed() {
  // The device costs a system call or an instruction; a request costs far more.
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace baton::server
