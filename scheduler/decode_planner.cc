#include "scheduler/decode_planner.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::scheduler {

DecodePlanner::DecodePlanner(const DecodePlannerOptions& options)
    : options_(options),
      pages_(options.total_pages, options.page_tokens, options.prefix_cache),
      next_epoch_(options.first_epoch) {
  BATON_CHECK_GT(options.page_tokens, 0);
  BATON_CHECK_GT(options.total_pages, 0);
  BATON_CHECK_GT(options.max_positions, 0);
  BATON_CHECK_GT(options.max_landings, 0);
  BATON_CHECK_GT(options.max_sequences, 0);
  BATON_CHECK_LE(options.max_sequences, options.max_batch_rows);
  BATON_CHECK_GT(options.reserve_output_tokens, 0);
  BATON_CHECK_GT(options.pages_per_credit, 0);
  BATON_CHECK_GT(options.first_epoch, 0u);
}

void DecodePlanner::Step(Tick now, absl::Span<const DecodeEvent> events, DecodeActionSink& sink) {
  for (const DecodeEvent& event : events) {
    std::visit([&](const auto& e) { Apply(now, e, sink); }, event);
  }
  BATON_CHECK_MSG(pass_.empty(), "a step without the result of the pass that was asked for");
  Expire(now, sink);
  RunDecodePass pass = PlanPass(now, sink);
  GrantCredits();
  SendUpdates(sink);

  DecodeReport& report = sink.report;
  const DecodeStatus status = StatusFor(Router());
  report.rows += static_cast<uint32_t>(pass.plan.total_rows);
  report.total_pages = status.total_pages;
  report.free_pages = status.free_pages;
  report.quarantined_pages = pages_.quarantined_pages();
  report.cached_pages = status.cached_pages;
  report.evicted_pages += pages_.evictions() - std::exchange(evictions_seen_, pages_.evictions());
  report.running = status.running;
  report.landing = status.landing;
  report.releasing = static_cast<int32_t>(attempts_.size()) - status.running - status.landing;
  report.routers = static_cast<int32_t>(routers_.size());
  report.draining = draining_;
  // Tokens leave before the pass begins.
  if (!pass.plan.slices.empty()) sink.Add(std::move(pass));
}

// --- routers ------------------------------------------------------------------------------

void DecodePlanner::Apply(Tick now, const RouterJoined& event, DecodeActionSink& sink) {
  if (routers_.contains(event.router)) Apply(now, RouterLost{event.router}, sink);
  routers_.emplace(event.router, Router());
}

void DecodePlanner::Apply(Tick now, const RouterLost& event, DecodeActionSink& sink) {
  routers_.erase(event.router);
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    const auto here = it++;
    if (here->second.router != event.router) continue;
    here->second.router_gone = true;
    if (here->second.ended) continue;
    Release(now, here,
            {EndKind::kCancelled, FinishReason::kCancelled, absl::CancelledError("router gone")},
            sink);
  }
}

void DecodePlanner::Apply(Tick now, const StartReceived& event, DecodeActionSink& sink) {
  const auto router = routers_.find(event.router);
  if (router == routers_.end()) {
    ++sink.report.stale_messages;
    return;
  }
  ++sink.report.starts;
  const bool has_credit = router->second.starts_received < router->second.credits_granted;
  ++router->second.starts_received;
  // A start without credit does not shift the account for the following ones.
  router->second.credits_granted =
      std::max(router->second.credits_granted, router->second.starts_received);
  if (attempts_.contains(event.request.key)) {
    ++sink.report.stale_messages;  // the attempt's own end answers both
    return;
  }
  Ending refusal{EndKind::kRefused, FinishReason::kNone, absl::OkStatus()};
  refusal.status = CanAdmit(event.request);
  if (!refusal.status.ok()) {
    refusal.kind = EndKind::kFailed;
    refusal.reason = FinishReason::kError;
  } else if (!has_credit) {
    refusal.status = absl::ResourceExhaustedError("the start was sent without a credit");
  } else {
    refusal.status = HasRoom();
  }
  PageTable table;
  if (refusal.status.ok()) refusal.status = TakePages(event.request, table);
  if (refusal.status.ok()) return Admit(now, event, std::move(table), sink);
  TellEnd(event.router, event.request.key, refusal, sink);
  router->second.update.released.push_back(event.request.key);
}

// What no waiting would mend.
absl::Status DecodePlanner::CanAdmit(const StartRequest& start) const {
  const auto prompt = static_cast<int64_t>(start.prompt.size());
  const auto delivered = static_cast<int64_t>(start.delivered.size());
  const int64_t max_tokens = start.sampling.max_tokens;
  if (prompt == 0)
    return absl::InvalidArgumentError("the prompt is empty: send at least one token");
  if (prompt + delivered >= options_.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request has ", prompt + delivered, " tokens; the model takes ",
                     options_.max_positions, " with at least one to generate: shorten the prompt"));
  }
  if (delivered >= max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", max_tokens, ", of which ",
                                                   delivered, " were delivered: nothing to do"));
  }
  const int32_t pages =
      PagesFor(ReservedTokens(prompt, delivered, max_tokens, options_.reserve_output_tokens),
               options_.page_tokens);
  if (pages > options_.total_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request needs ", pages, " pages; this rank has ", options_.total_pages,
                     ": shorten the prompt, lower max_tokens or give the rank more KV memory"));
  }
  if (start.remaining <= Duration()) {
    return absl::DeadlineExceededError("the deadline passed before the request was taken on");
  }
  return absl::OkStatus();
}

// What another moment or rank may have.
absl::Status DecodePlanner::HasRoom() const {
  if (draining_) return absl::ResourceExhaustedError("the decode rank is draining");
  if (LandingCount() >= options_.max_landings) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", options_.max_landings, " landings of the decode rank are taken"));
  }
  if (static_cast<int32_t>(attempts_.size()) >= options_.max_sequences) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the decode rank holds ", options_.max_sequences, " sequences already"));
  }
  return absl::OkStatus();
}

// Cached pages for the prompt where there are, new ones for the rest and what is reserved; none at
// all when they do not suffice.
absl::Status DecodePlanner::TakePages(const StartRequest& start, PageTable& table) {
  const auto prompt = static_cast<int64_t>(start.prompt.size());
  table = pages_.Find(start.prompt, ReusablePages(prompt, options_.page_tokens), start.cache_salt);
  const int32_t missing =
      PagesFor(ReservedTokens(prompt, static_cast<int64_t>(start.delivered.size()),
                              start.sampling.max_tokens, options_.reserve_output_tokens),
               options_.page_tokens) -
      static_cast<int32_t>(table.pages.size());
  if (pages_.CanGrow(missing)) {
    pages_.Grow(table, missing);
    return absl::OkStatus();
  }
  const int32_t free = pages_.free_pages();
  pages_.Free(table);
  return absl::ResourceExhaustedError(absl::StrCat("the request needs ", missing, " pages; ", free,
                                                   " of ", options_.total_pages, " are free"));
}

void DecodePlanner::Admit(Tick now, const StartReceived& event, PageTable table,
                          DecodeActionSink& sink) {
  const StartRequest& start = event.request;
  Attempt attempt;
  attempt.key = start.key;
  attempt.router = event.router;
  attempt.fsm = RequestFsm(RequestState::kReserved, start.key.attempt);
  attempt.age = next_age_++;
  attempt.tokens = start.prompt;
  attempt.tokens.insert(attempt.tokens.end(), start.delivered.begin(), start.delivered.end());
  attempt.prompt_tokens = static_cast<int32_t>(start.prompt.size());
  attempt.sampling = start.sampling;
  attempt.received_at = std::min(event.received_at, now);
  attempt.deadline = attempt.received_at + start.remaining;
  attempt.prefill_address = start.prefill_address;
  attempt.table = std::move(table);
  const auto cached_pages = static_cast<int32_t>(attempt.table.chain.nodes.size());
  const int32_t cached_tokens = cached_pages * options_.page_tokens;
  attempt.decode_form_tokens = pages_.GeneratedPages(attempt.table) * options_.page_tokens;
  sink.report.lookup_tokens += start.prompt.size();
  sink.report.hit_tokens += static_cast<uint64_t>(cached_tokens);
  sink.report.generated_tokens += static_cast<uint64_t>(attempt.decode_form_tokens);
  attempt.epoch = Epoch(next_epoch_++);
  attempt.landing_open = true;
  attempt.writer = true;
  attempt.wait_until = now + options_.prefill_timeout;

  OpenLanding open{start.key, attempt.epoch, {}, attempt.prompt_tokens - cached_tokens};
  const auto pages = attempt.table.pages.begin();
  open.pages.assign(pages + cached_pages,
                    pages + PagesFor(attempt.prompt_tokens, options_.page_tokens));
  CallPrefill call;
  call.address = start.prefill_address;
  call.call.key = start.key;
  call.call.prompt = start.prompt;
  call.call.sampling = start.sampling;
  call.call.sample_first_token = start.delivered.empty();
  call.call.remaining = attempt.deadline - now;
  call.call.landing.epoch = attempt.epoch;
  call.call.landing.transport_address = options_.transport_address;
  call.call.landing.first_page = cached_pages;
  call.call.landing.pages = open.pages;
  call.call.cache_salt = start.cache_salt;
  sink.Add(std::move(open));  // before the call: its messages may come at once
  sink.Add(std::move(call));
  attempt.fsm.To(RequestState::kPrefilling);
  attempts_.emplace(start.key, std::move(attempt));
}

void DecodePlanner::Apply(Tick now, const CancelReceived& event, DecodeActionSink& sink) {
  const auto it = attempts_.find(event.request.key);
  if (it == attempts_.end() || it->second.ended || it->second.router != event.router) {
    ++sink.report.stale_messages;  // its end is on the way
    return;
  }
  Release(now, it,
          {EndKind::kCancelled, FinishReason::kCancelled, absl::CancelledError("cancelled")}, sink);
}

void DecodePlanner::Apply(Tick, const DrainRequested&, DecodeActionSink&) { draining_ = true; }

// --- prefill and hand-off -----------------------------------------------------------------

void DecodePlanner::Apply(Tick now, const PrefillReplied& event, DecodeActionSink& sink) {
  const PrefillReply& reply = event.reply;
  const auto it = attempts_.find(reply.key);
  if (it == attempts_.end() || !it->second.writer) {
    ++sink.report.stale_messages;
    return;
  }
  Attempt& attempt = it->second;
  attempt.writer = false;
  if (attempt.ended) return EndQuarantine(it);
  if (!reply.status.ok()) return OnPrefillError(now, it, reply.status, false, sink);

  const bool wants_token = static_cast<int32_t>(attempt.tokens.size()) == attempt.prompt_tokens;
  if (reply.has_first_token != wants_token) {
    return OnPrefillError(
        now, it, absl::InternalError("the prefill reply lacks its token, or has one too many"),
        false, sink);
  }
  attempt.replied = true;
  attempt.messages_posted = reply.messages_posted;
  attempt.cached_tokens = reply.cached_tokens;
  attempt.wait_until = now + options_.handoff_timeout;
  const Duration waited = std::min(event.received_at, now) - attempt.received_at;
  attempt.timings.prefill_wait = std::clamp(reply.wait, Duration(), waited);
  attempt.timings.prefill =
      std::clamp(reply.compute, Duration(), waited - attempt.timings.prefill_wait);
  attempt.timings.transfer_exposed =
      waited - attempt.timings.prefill_wait - attempt.timings.prefill;
  // The first token does not wait for the landing: it is right whatever becomes of the hand-off.
  if (wants_token && !Append(now, it, reply.first_token, sink)) return;
  JoinIfLanded(now, it, sink);
}

void DecodePlanner::OnPrefillError(Tick now, Attempts::iterator it, const absl::Status& status,
                                   bool worker_lost, DecodeActionSink& sink) {
  Ending ending{EndKind::kRetryable, FinishReason::kNone, status, worker_lost};
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      ending.kind = EndKind::kRefused;
      break;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kDeadlineExceeded:
      ending.kind = EndKind::kFailed;
      ending.reason = FinishReason::kError;
      break;
    default:
      ++sink.report.prefill_errors;
      break;
  }
  Release(now, it, ending, sink);
}

void DecodePlanner::Apply(Tick now, const PrefillCallFailed& event, DecodeActionSink& sink) {
  const auto it = attempts_.find(event.key);
  if (it == attempts_.end() || !it->second.writer) {
    ++sink.report.stale_messages;
    return;
  }
  it->second.writer = false;
  if (it->second.ended) return EndQuarantine(it);
  const absl::Status status =
      event.status.ok() || event.worker_lost
          ? absl::UnavailableError(absl::StrCat("prefill call failed: ", event.status.ToString()))
          : event.status;
  OnPrefillError(now, it, status, event.worker_lost, sink);
}

void DecodePlanner::Apply(Tick now, const LandingCompleted& event, DecodeActionSink& sink) {
  const auto it = attempts_.find(event.key);
  if (it == attempts_.end() || it->second.epoch != event.epoch || !it->second.landing_open) {
    ++sink.report.stale_messages;
    return;
  }
  it->second.complete = true;
  it->second.messages_accepted = event.messages;
  JoinIfLanded(now, it, sink);
}

void DecodePlanner::Apply(Tick now, const LandingCorrupted& event, DecodeActionSink& sink) {
  const auto it = attempts_.find(event.key);
  if (it == attempts_.end() || it->second.epoch != event.epoch || !it->second.landing_open) {
    ++sink.report.stale_messages;
    return;
  }
  ++sink.report.handoff_corrupt;
  Release(now, it, {EndKind::kRetryable, FinishReason::kNone, event.status}, sink);
}

void DecodePlanner::JoinIfLanded(Tick now, Attempts::iterator it, DecodeActionSink& sink) {
  Attempt& attempt = it->second;
  if (!attempt.replied || !attempt.complete) return;
  if (attempt.messages_accepted != attempt.messages_posted) {
    ++sink.report.handoff_corrupt;
    return Release(
        now, it,
        {EndKind::kRetryable, FinishReason::kNone,
         absl::DataLossError(absl::StrCat("the landing took ", attempt.messages_accepted,
                                          " messages, prefill posted ", attempt.messages_posted))},
        sink);
  }
  attempt.fsm.To(RequestState::kLanded);
  attempt.landing_open = false;
  sink.Add(CloseLanding{attempt.epoch});
  attempt.wait_until = Tick::Infinite();
  attempt.computed = attempt.prompt_tokens;
  pages_.Publish(attempt.table, attempt.tokens, attempt.prompt_tokens / options_.page_tokens,
                 /*generated=*/false, /*give_up_duplicates=*/true);
  running_.emplace(attempt.age, it->first);
  ++sink.report.landed;
}

// --- the way out --------------------------------------------------------------------------

void DecodePlanner::Release(Tick now, Attempts::iterator it, const Ending& ending,
                            DecodeActionSink& sink) {
  Attempt& attempt = it->second;
  BATON_CHECK(!attempt.ended);
  switch (ending.kind) {
    case EndKind::kFinished:
      attempt.fsm.To(RequestState::kDone);
      break;
    case EndKind::kCancelled:
      attempt.fsm.To(RequestState::kCancelled);
      break;
    case EndKind::kFailed:
      attempt.fsm.To(RequestState::kFailed);
      break;
    case EndKind::kRefused:
    case EndKind::kPreempted:
    case EndKind::kRetryable:
      attempt.fsm.To(RequestState::kQueued);
      break;
  }
  attempt.ended = true;
  TellEnd(attempt.router, attempt.key, ending, sink);
  running_.erase(attempt.age);
  if (attempt.landing_open) {
    attempt.landing_open = false;
    sink.Add(CloseLanding{attempt.epoch});
  }
  if (options_.reuse_generated && attempt.computed > attempt.prompt_tokens) {
    pages_.Publish(attempt.table, attempt.tokens, attempt.computed / options_.page_tokens,
                   /*generated=*/true, /*give_up_duplicates=*/false);
  }
  pages_.Quarantine(attempt.table);
  if (!attempt.writer) return EndQuarantine(it);
  sink.Add(CancelPrefill{attempt.prefill_address, attempt.key});
  attempt.wait_until = now + options_.release_timeout;
}

void DecodePlanner::EndQuarantine(Attempts::iterator it) {
  pages_.EndQuarantine(it->second.table);
  const auto router = routers_.find(it->second.router);
  if (router != routers_.end() && !it->second.router_gone) {
    router->second.update.released.push_back(it->first);
  }
  attempts_.erase(it);
}

void DecodePlanner::TellEnd(RouterId router, RequestKey key, const Ending& ending,
                            DecodeActionSink& sink) {
  DecodeReport& report = sink.report;
  switch (ending.kind) {
    case EndKind::kFinished:
      ++report.finished;
      break;
    case EndKind::kCancelled:
      ++report.cancelled;
      break;
    case EndKind::kFailed:
      ++report.failed;
      break;
    case EndKind::kRefused:
      ++report.refused;
      break;
    case EndKind::kPreempted:
      ++report.preempted;
      break;
    case EndKind::kRetryable:
      ++report.retryable;
      break;
  }
  const auto it = routers_.find(router);
  if (it == routers_.end()) return;
  it->second.update.ends.push_back(
      {key, ending.kind, ending.reason, ending.status, ending.prefill_lost});
}

// --- integrity ----------------------------------------------------------------------------

void DecodePlanner::CheckInvariants() const {
  std::vector<const PageTable*> live;
  std::vector<const PageTable*> quarantined;
  std::set<Epoch> epochs;
  size_t running = 0;
  for (const auto& [key, attempt] : attempts_) {
    BATON_CHECK(attempt.key == key);
    BATON_CHECK_LT(attempt.epoch.value(), next_epoch_);
    BATON_CHECK(epochs.insert(attempt.epoch).second);
    BATON_CHECK(attempt.computed <= static_cast<int32_t>(attempt.tokens.size()));
    (attempt.ended ? quarantined : live).push_back(&attempt.table);
    if (attempt.ended) {
      // Kept only for its writer, and not for ever.
      BATON_CHECK(attempt.writer && !attempt.landing_open && !attempt.wait_until.infinite());
      continue;
    }
    const auto capacity = static_cast<int64_t>(attempt.table.pages.size()) * options_.page_tokens;
    BATON_CHECK(attempt.computed <= capacity);
    const bool landing = attempt.fsm.state() == RequestState::kPrefilling;
    BATON_CHECK_EQ(landing, attempt.landing_open);
    BATON_CHECK_EQ(landing, !attempt.wait_until.infinite());
    BATON_CHECK_EQ(landing, attempt.writer || !attempt.complete);
    BATON_CHECK_EQ(landing, !running_.contains(attempt.age));
    if (!landing) {
      ++running;
      BATON_CHECK(running_.at(attempt.age) == key);
      BATON_CHECK_GE(attempt.computed, attempt.prompt_tokens);
      // The newest token's latents are yet to be computed, in every pass.
      BATON_CHECK_LT(attempt.computed, static_cast<int32_t>(attempt.tokens.size()));
    }
    BATON_CHECK(routers_.contains(attempt.router) && !attempt.router_gone);
  }
  BATON_CHECK_EQ(running_.size(), running);
  BATON_CHECK_LE(attempts_.size(), static_cast<size_t>(options_.max_sequences));
  BATON_CHECK_LE(LandingCount(), options_.max_landings);
  pages_.CheckInvariants(live, quarantined);
  for (const auto& [id, router] : routers_) {
    BATON_CHECK_LE(router.starts_received, router.credits_granted);
  }
}

}  // namespace baton::scheduler
