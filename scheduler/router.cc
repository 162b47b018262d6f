#include "scheduler/router.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/identity.h"
#include "scheduler/page_pool.h"

namespace baton::scheduler {

Router::Router(const RouterOptions& options) : options_(options), identity_(options.identity) {
  BATON_CHECK_GT(options.max_queued, 0);
  BATON_CHECK_GT(options.max_attempts, 0);
  BATON_CHECK_GE(options.max_requeues, 0);
  BATON_CHECK_GT(options.scan_depth, 0);
  BATON_CHECK_GE(options.max_overtakes, 0);
  BATON_CHECK_GT(options.reserve_output_tokens, 0);
  BATON_CHECK(options.max_duration > Duration());
}

void Router::Step(Tick now, absl::Span<const RouterEvent> events, RouterActionSink& sink) {
  for (const RouterEvent& event : events) {
    std::visit([&](const auto& e) { Apply(now, e, sink); }, event);
  }
  Expire(now, sink);
  FailWithoutWorkers(now, sink);
  Dispatch(now, sink);

  RouterReport& report = sink.report;
  report.queued = static_cast<int32_t>(queue_.size());
  report.running = static_cast<int32_t>(requests_.size() - queue_.size());
  report.releasing = static_cast<int32_t>(release_by_.size());
  report.decode_ranks = static_cast<int32_t>(decode_.size());
  report.prefill_workers = static_cast<int32_t>(prefill_.size());
  report.draining = draining_;
}

// --- clients ------------------------------------------------------------------------------

void Router::Apply(Tick now, const Arrived& event, RouterActionSink& sink) {
  ++sink.report.arrived;
  BATON_CHECK(!event.prompt.empty());
  BATON_CHECK_GT(event.sampling.max_tokens, 0);
  Request request;
  request.id = event.id;
  request.order = next_order_++;
  request.prompt = event.prompt;
  request.cache_salt = event.cache_salt;
  request.sampling = event.sampling;
  request.arrived_at = std::min(event.arrived_at, now);
  request.deadline = std::min(event.deadline, request.arrived_at + options_.max_duration);
  request.queued_at = now;
  const bool full = static_cast<int32_t>(queue_.size()) >= options_.max_queued;
  const auto [it, inserted] = requests_.emplace(event.id, std::move(request));
  BATON_CHECK_MSG(inserted, absl::StrCat("request id ", event.id.value(), " was used twice"));
  deadlines_.emplace(it->second.deadline, event.id);
  queue_.emplace(it->second.order, event.id);

  if (draining_) {
    return Finish(now, it, FinishReason::kError,
                  absl::UnavailableError("the server is draining: send the request elsewhere"),
                  sink);
  }
  if (full) {
    ++sink.report.refused_full;
    return Finish(now, it, FinishReason::kError,
                  absl::ResourceExhaustedError(
                      absl::StrCat(options_.max_queued, " requests are waiting already: try again ",
                                   "later, or add workers")),
                  sink);
  }
  const absl::Status fits = FitsSomewhere(it->second);
  if (!fits.ok()) Finish(now, it, FinishReason::kError, fits, sink);
}

void Router::Apply(Tick now, const ClientCancelled& event, RouterActionSink& sink) {
  const auto it = requests_.find(event.id);
  if (it == requests_.end()) return;  // it ended a moment ago
  Abandon(now, it, FinishReason::kCancelled, absl::CancelledError("cancelled by the client"), sink);
}

void Router::Apply(Tick, const DrainRequested&, RouterActionSink&) { draining_ = true; }

// --- workers ------------------------------------------------------------------------------

bool Router::Admits(WorkerId worker, const WorkerIdentity& identity, RouterActionSink& sink) {
  absl::Status compatible = CheckCompatible(identity_, identity);
  if (compatible.ok() && identity.page_tokens <= 0) {
    compatible = absl::FailedPreconditionError(
        absl::StrCat(identity.role, " ", identity.instance, " says that its pages hold ",
                     identity.page_tokens, " tokens; expected a positive number"));
  }
  if (!compatible.ok()) {
    ++sink.report.workers_refused;
    sink.Add(RefuseWorker{worker, compatible});
    return false;
  }
  Adopt(identity, identity_);
  return true;
}

void Router::Apply(Tick now, const DecodeJoined& event, RouterActionSink& sink) {
  if (decode_.contains(event.worker)) {
    LoseDecode(now, event.worker, absl::UnavailableError("the decode rank started anew"), sink);
  }
  if (!Admits(event.worker, event.identity, sink)) return;
  DecodeRank rank;
  rank.identity = event.identity;
  rank.status = event.status;
  largest_decode_pages_ = std::max(largest_decode_pages_, rank.status.total_pages);
  decode_.emplace(event.worker, std::move(rank));
}

void Router::Apply(Tick now, const DecodeLost& event, RouterActionSink& sink) {
  if (decode_.contains(event.worker)) LoseDecode(now, event.worker, event.status, sink);
}

void Router::LoseDecode(Tick now, WorkerId worker, const absl::Status& why,
                        RouterActionSink& sink) {
  const std::set<RequestKey> keys = std::move(decode_.at(worker).keys);
  decode_.erase(worker);
  for (const RequestKey& key : keys) {
    const auto here = attempts_.find(key);
    const bool live = !here->second.ended;
    FreePrefill(here);
    release_by_.erase({here->second.release_by, key});
    attempts_.erase(here);
    if (!live) continue;
    ++sink.report.retries;
    ++sink.report.decode_losses;
    Requeue(now, requests_.find(key.request), true,
            absl::UnavailableError(absl::StrCat("the decode rank was lost: ", why.ToString())),
            sink);
  }
}

void Router::Apply(Tick now, const DecodeUpdated& event, RouterActionSink& sink) {
  const auto it = decode_.find(event.worker);
  if (it == decode_.end()) {
    ++sink.report.stale_messages;
    return;
  }
  DecodeRank& rank = it->second;
  rank.status = event.update.status;
  largest_decode_pages_ = std::max(largest_decode_pages_, rank.status.total_pages);
  const uint64_t unseen =
      rank.starts_sent - std::min(rank.starts_sent, rank.status.starts_received);
  while (rank.unseen_pages.size() > unseen) {
    rank.unseen_sum -= rank.unseen_pages.front();
    rank.unseen_pages.pop_front();
  }
  rank.prefixes.ShrinkTo(int64_t{rank.status.cached_pages} + rank.prompt_pages);

  const Tick received_at = std::min(event.received_at, now);
  for (const TokenChunk& chunk : event.update.chunks) {
    OnChunk(now, event.worker, received_at, chunk, sink);
  }
  for (const RequestEnd& end : event.update.ends) OnEnd(now, event.worker, end, sink);
  for (const RequestKey key : event.update.released) OnReleased(event.worker, key, sink);
}

void Router::Apply(Tick now, const PrefillJoined& event, RouterActionSink& sink) {
  Apply(now, PrefillLost{event.worker, absl::OkStatus()}, sink);
  if (!Admits(event.worker, event.identity, sink)) return;
  PrefillWorker worker;
  worker.address = event.address;
  worker.identity = event.identity;
  worker.status = event.status;
  largest_prefill_pages_ = std::max(largest_prefill_pages_, worker.status.total_pages);
  prefill_.emplace(event.worker, std::move(worker));
}

void Router::Apply(Tick, const PrefillUpdated& event, RouterActionSink& sink) {
  const auto it = prefill_.find(event.worker);
  if (it == prefill_.end()) {
    ++sink.report.stale_messages;
    return;
  }
  PrefillWorker& worker = it->second;
  worker.status = event.status;
  worker.prefixes.ShrinkTo(int64_t{event.status.cached_pages} + worker.busy_pages);
  largest_prefill_pages_ = std::max(largest_prefill_pages_, event.status.total_pages);
}

// The decode ranks that called the worker notice its loss themselves and report each attempt; here
// it only takes no more work.
void Router::Apply(Tick, const PrefillLost& event, RouterActionSink&) {
  const auto it = prefill_.find(event.worker);
  if (it == prefill_.end()) return;
  for (const RequestKey& key : it->second.keys) attempts_.at(key).prefill_busy = false;
  prefill_.erase(it);
}

// --- what decode ranks report -------------------------------------------------------------

void Router::OnChunk(Tick now, WorkerId worker, Tick received_at, const TokenChunk& chunk,
                     RouterActionSink& sink) {
  const auto at = attempts_.find(chunk.key);
  if (at == attempts_.end() || at->second.ended || at->second.decode != worker) {
    ++sink.report.stale_messages;
    return;
  }
  const auto it = requests_.find(chunk.key.request);
  Request& request = it->second;
  if (request.fsm.state() == RequestState::kPrefilling) {
    // The first token left prefill: its slot is free, its hand-off all but over.
    FreePrefill(at);
    request.fsm.To(RequestState::kLanded);
    request.fsm.To(RequestState::kDecoding);
  }
  if (chunk.has_first_token_timings && !request.has_first_token) {
    OnFirstToken(received_at, request, chunk);
  }

  const auto have = static_cast<int64_t>(request.delivered.size());
  const int64_t first = chunk.first_index;
  const int64_t repeated = have - first;  // tokens of the chunk that the client has already
  bool conflict = first < 0 || repeated < 0;
  EmitTokens emit{request.id, static_cast<int32_t>(have), {}};
  for (size_t i = 0; i < chunk.tokens.size() && !conflict; ++i) {
    const auto index = static_cast<int64_t>(i);
    if (index < repeated) {
      conflict = request.delivered[static_cast<size_t>(first + index)] != chunk.tokens[i].token;
      sink.report.duplicate_tokens += conflict ? 0 : 1;
    } else {
      emit.tokens.push_back(chunk.tokens[i]);
    }
  }
  conflict =
      conflict || have + static_cast<int64_t>(emit.tokens.size()) > request.sampling.max_tokens;
  if (conflict) {
    ++sink.report.token_conflicts;
    return Abandon(now, it, FinishReason::kError,
                   absl::InternalError(absl::StrCat(
                       "a decode rank sent tokens from index ", first, " that contradict the ",
                       have, " delivered ones: please report this as a bug")),
                   sink);
  }
  if (emit.tokens.empty()) return;
  for (const SampledToken& token : emit.tokens) request.delivered.push_back(token.token);
  request.requeues = 0;
  sink.report.tokens += static_cast<uint32_t>(emit.tokens.size());
  sink.Add(std::move(emit));
}

void Router::OnFirstToken(Tick received_at, Request& request, const TokenChunk& chunk) {
  request.has_first_token = true;
  request.cached_tokens = chunk.cached_tokens;
  request.decode_form_tokens = chunk.decode_form_tokens;
  request.ttft = received_at - request.arrived_at;
  // Each stage takes at most what the earlier ones leave, so that they add up whatever the workers'
  // clocks say.
  Duration left = request.ttft;
  const auto take = [&left](Duration stage) {
    const Duration taken = std::clamp(stage, Duration(), left);
    left = left - taken;
    return taken;
  };
  request.stages.queue = take(request.started_at - request.arrived_at);
  request.stages.prefill_wait = take(chunk.timings.prefill_wait);
  request.stages.prefill = take(chunk.timings.prefill);
  request.stages.transfer_exposed = take(chunk.timings.transfer_exposed);
  request.stages.decode_wait = left;
}

void Router::OnEnd(Tick now, WorkerId worker, const RequestEnd& end, RouterActionSink& sink) {
  const auto at = attempts_.find(end.key);
  if (at == attempts_.end() || at->second.decode != worker || at->second.ended) {
    // An attempt that was abandoned here ends there a little later; anything else is stale.
    const bool expected = at != attempts_.end() && at->second.decode == worker;
    sink.report.stale_messages += expected ? 0 : 1;
    return;
  }
  const WorkerId prefill = at->second.prefill;
  EndAttempt(now, at);
  const auto it = requests_.find(end.key.request);
  Request& request = it->second;
  switch (end.kind) {
    case EndKind::kFinished:
      return Finish(now, it, end.reason, absl::OkStatus(), sink);
    case EndKind::kRefused:
      ++sink.report.refusals;
      return Requeue(now, it, false, end.status, sink);
    case EndKind::kPreempted:
      ++sink.report.preemptions;
      return Requeue(now, it, false, absl::ResourceExhaustedError("preempted too often"), sink);
    case EndKind::kCancelled:  // nobody asked for it: the rank is giving up its work
    case EndKind::kRetryable:
      ++sink.report.retries;
      sink.report.prefill_losses += end.prefill_lost ? 1 : 0;
      request.avoids_prefill = true;
      request.avoided_prefill = prefill;
      if (const auto lost = prefill_.find(prefill); end.prefill_lost && lost != prefill_.end()) {
        lost->second.suspect_until = now + options_.suspect_period;
      }
      if (!end.prefill_lost) {
        // Its group may be about to go, and each of its ranks costs an attempt.
        decode_.at(worker).suspect_until = now + options_.suspect_period;
        request.avoided_decode.push_back(worker);
      }
      return Requeue(now, it, true, end.status, sink);
    case EndKind::kFailed:
      return Finish(
          now, it, FinishReason::kError,
          end.status.ok() ? absl::InternalError("the decode rank failed the request") : end.status,
          sink);
  }
}

void Router::OnReleased(WorkerId worker, RequestKey key, RouterActionSink& sink) {
  const auto it = attempts_.find(key);
  if (it == attempts_.end() || it->second.decode != worker || !it->second.ended) {
    ++sink.report.stale_messages;
    return;
  }
  release_by_.erase({it->second.release_by, key});
  EraseAttempt(it);
}

// --- ends ---------------------------------------------------------------------------------

void Router::EndAttempt(Tick now, Attempts::iterator it) {
  Attempt& attempt = it->second;
  attempt.ended = true;
  attempt.release_by = now + options_.release_timeout;
  release_by_.emplace(attempt.release_by, it->first);
  DecodeRank& rank = decode_.at(attempt.decode);
  --rank.attempts;
  rank.prompt_pages -= attempt.prompt_pages;
}

void Router::EraseAttempt(Attempts::iterator it) {
  FreePrefill(it);
  decode_.at(it->second.decode).keys.erase(it->first);
  attempts_.erase(it);
}

void Router::FreePrefill(Attempts::iterator it) {
  Attempt& attempt = it->second;
  if (!std::exchange(attempt.prefill_busy, false)) return;
  PrefillWorker& worker = prefill_.at(attempt.prefill);
  worker.keys.erase(it->first);
  --worker.busy;
  worker.busy_pages -= attempt.prompt_pages;
  worker.busy_tokens -= attempt.prefill_tokens;
}

void Router::Requeue(Tick now, Requests::iterator it, bool counts, const absl::Status& why,
                     RouterActionSink& sink) {
  Request& request = it->second;
  request.fsm.To(RequestState::kQueued);
  queue_.emplace(request.order, it->first);
  request.queued_at = now;
  request.not_before = now;
  if (static_cast<int32_t>(request.delivered.size()) >= request.sampling.max_tokens) {
    // All but the news of its end had arrived.
    return Finish(now, it, FinishReason::kLength, absl::OkStatus(), sink);
  }
  const int32_t bound = counts ? options_.max_attempts : options_.max_requeues;
  const int32_t used = counts ? ++request.failures : ++request.requeues;
  if (counts ? used >= bound : used > bound) {
    return Finish(now, it, FinishReason::kError,
                  absl::UnavailableError(absl::StrCat("given up after ", request.starts,
                                                      " starts; the last one: ", why.ToString())),
                  sink);
  }
  if (counts) return;
  const int32_t doublings = std::min(request.requeues - 1, 20);
  const Duration backoff =
      std::min(options_.max_requeue_backoff, options_.requeue_backoff * (int64_t{1} << doublings));
  request.not_before = now + backoff;
}

void Router::Finish(Tick now, Requests::iterator it, FinishReason reason, absl::Status status,
                    RouterActionSink& sink) {
  Request& request = it->second;
  request.fsm.To(status.ok()                 ? RequestState::kDone
                 : absl::IsCancelled(status) ? RequestState::kCancelled
                                             : RequestState::kFailed);
  RouterReport& report = sink.report;
  ++(status.ok() ? report.finished : absl::IsCancelled(status) ? report.cancelled : report.failed);

  RequestResult result;
  result.id = request.id;
  result.reason = reason;
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    result.retry_after = options_.retry_after;
  }
  result.status = std::move(status);
  result.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  result.cached_tokens = request.cached_tokens;
  result.decode_form_tokens = request.decode_form_tokens;
  result.output_tokens = static_cast<int32_t>(request.delivered.size());
  result.attempts = request.starts;
  result.has_first_token = request.has_first_token;
  result.ttft = request.ttft;
  result.stages = request.stages;
  result.total = now - request.arrived_at;
  sink.Add(std::move(result));

  queue_.erase(request.order);
  deadlines_.erase({request.deadline, request.id});
  requests_.erase(it);
}

void Router::Abandon(Tick now, Requests::iterator it, FinishReason reason, absl::Status status,
                     RouterActionSink& sink) {
  const RequestKey key{it->first, it->second.fsm.attempt()};
  if (it->second.fsm.running()) {
    const auto attempt = attempts_.find(key);
    sink.Add(SendCancel{attempt->second.decode, {key}});
    EndAttempt(now, attempt);
  }
  Finish(now, it, reason, std::move(status), sink);
}

// --- time ---------------------------------------------------------------------------------

void Router::Expire(Tick now, RouterActionSink& sink) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto it = requests_.find(deadlines_.begin()->second);
    const char* where = it->second.fsm.running() ? "while the request ran" : "in the queue";
    Abandon(now, it, FinishReason::kError,
            absl::DeadlineExceededError(absl::StrCat("the deadline passed ", where)), sink);
  }
  while (!release_by_.empty() && release_by_.begin()->first <= now) {
    const auto it = attempts_.find(release_by_.begin()->second);
    ++sink.report.release_timeouts;
    EraseAttempt(it);
    release_by_.erase(release_by_.begin());
  }
}

Tick Router::NextWake() const {
  Tick wake = next_dispatch_;
  if (!deadlines_.empty()) wake = std::min(wake, deadlines_.begin()->first);
  if (!release_by_.empty()) wake = std::min(wake, release_by_.begin()->first);
  if (!workers_missing_since_.infinite()) {
    for (const auto& [order, id] : queue_) {
      const Tick since = std::max(workers_missing_since_, requests_.at(id).queued_at);
      wake = std::min(wake, since + options_.no_workers_timeout);
    }
  }
  return wake;
}

// --- integrity ----------------------------------------------------------------------------

}  // namespace baton::scheduler
