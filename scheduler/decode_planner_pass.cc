// DecodePlanner, continued: what runs in the next pass, what its tokens do, timers and credits.

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/decode_planner.h"
#include "scheduler/pass_result.h"

namespace baton::scheduler {

// --- passes -------------------------------------------------------------------------------

void DecodePlanner::Apply(Tick now, const PassFinished& event, DecodeActionSink& sink) {
  BATON_CHECK_MSG(!pass_.empty(), "the result of a pass that nobody asked for");
  const std::vector<PassSlice> pass = std::exchange(pass_, {});
  PassResult result(event, pass);
  for (const PassSlice& slice : pass) {
    const PassResult::Slice outcome = result.Next(slice);
    const auto it = attempts_.find(slice.key);
    if (it == attempts_.end() || it->second.ended) continue;  // ended by an event before this one
    if (!outcome.status.ok()) {
      ++sink.report.pass_failures;
      Release(now, it,
              {EndKind::kRetryable, FinishReason::kNone,
               absl::InternalError(
                   absl::StrCat("the decode pass failed: ", outcome.status.ToString()))},
              sink);
      continue;
    }
    it->second.computed += slice.rows;
    if (outcome.token != nullptr) Append(now, it, *outcome.token, sink);
  }
}

bool DecodePlanner::Stops(const Attempt& attempt, TokenId token) const {
  const auto has = [token](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return (!attempt.sampling.ignore_eos && has(options_.eos_token_ids)) ||
         has(attempt.sampling.stop_token_ids);
}

bool DecodePlanner::Append(Tick now, Attempts::iterator it, const SampledToken& token,
                           DecodeActionSink& sink) {
  Attempt& attempt = it->second;
  if (Stops(attempt, token.token)) {
    if (!attempt.first_chunk_sent) AddChunk(attempt, nullptr, sink);
    Release(now, it, {EndKind::kFinished, FinishReason::kStop, absl::OkStatus()}, sink);
    return false;
  }
  AddChunk(attempt, &token, sink);
  attempt.tokens.push_back(token.token);
  const auto length = static_cast<int32_t>(attempt.tokens.size());
  if (length - attempt.prompt_tokens >= attempt.sampling.max_tokens ||
      length >= options_.max_positions) {
    Release(now, it, {EndKind::kFinished, FinishReason::kLength, absl::OkStatus()}, sink);
    return false;
  }
  return true;
}

void DecodePlanner::AddChunk(Attempt& attempt, const SampledToken* token, DecodeActionSink& sink) {
  TokenChunk chunk;
  chunk.key = attempt.key;
  chunk.first_index = static_cast<int32_t>(attempt.tokens.size()) - attempt.prompt_tokens;
  if (token != nullptr) chunk.tokens.push_back(*token);
  if (!attempt.first_chunk_sent) {
    attempt.first_chunk_sent = true;
    chunk.has_first_token_timings = true;
    chunk.timings = attempt.timings;
    chunk.cached_tokens = attempt.cached_tokens;
    chunk.decode_form_tokens = attempt.decode_form_tokens;
    sink.report.transfer_exposed = sink.report.transfer_exposed + attempt.timings.transfer_exposed;
  }
  sink.report.tokens += static_cast<uint32_t>(chunk.tokens.size());
  const auto router = routers_.find(attempt.router);
  if (router != routers_.end()) router->second.update.chunks.push_back(std::move(chunk));
}

RunDecodePass DecodePlanner::PlanPass(Tick now, DecodeActionSink& sink) {
  RunDecodePass pass;
  // Oldest first; growing may preempt the youngest, so the list is walked by age, not by iterator.
  for (auto at = running_.begin(); at != running_.end();) {
    const uint64_t age = at->first;
    const auto it = attempts_.find(at->second);
    Attempt& attempt = it->second;
    // Every later sequence keeps one row; what is left over serves long replays, oldest first.
    const auto later = static_cast<int32_t>(std::distance(at, running_.end())) - 1;
    const int32_t budget = options_.max_batch_rows - pass.plan.total_rows - later;
    const int32_t rows =
        std::min(static_cast<int32_t>(attempt.tokens.size()) - attempt.computed, budget);
    if (GrowFor(now, it, rows, sink)) AddSlice(attempt, rows, pass);
    at = running_.upper_bound(age);
  }
  if (pass.plan.slices.empty()) return pass;
  pass.plan.step = ++passes_;
  pass.plan.form = Form::kDecode;
  return pass;
}

void DecodePlanner::AddSlice(Attempt& attempt, int32_t rows, RunDecodePass& pass) {
  if (attempt.fsm.state() == RequestState::kLanded) attempt.fsm.To(RequestState::kDecoding);
  SequenceSlice slice;
  slice.key = attempt.key;
  const int32_t end = attempt.computed + rows;
  slice.sequence = std::span(attempt.tokens).first(static_cast<size_t>(end));
  slice.prompt_tokens = attempt.prompt_tokens;
  slice.first_position = attempt.computed;
  slice.row_count = rows;
  slice.pages = attempt.table.pages;
  slice.sample = end == static_cast<int32_t>(attempt.tokens.size());
  slice.sampling = &attempt.sampling;
  pass.plan.slices.push_back(slice);
  pass.plan.total_rows += rows;
  pass_.push_back({attempt.key, rows, slice.sample});
}

// True when the attempt's pages hold `rows` more tokens. Otherwise it sits this pass out, or is
// gone.
bool DecodePlanner::GrowFor(Tick now, Attempts::iterator it, int32_t rows, DecodeActionSink& sink) {
  Attempt& attempt = it->second;
  const int32_t needed = PagesFor(int64_t{attempt.computed} + rows, options_.page_tokens);
  while (static_cast<int32_t>(attempt.table.pages.size()) < needed) {
    if (pages_.CanGrow(1)) {
      pages_.Grow(attempt.table, 1);
      continue;
    }
    const Ending preempted{EndKind::kPreempted, FinishReason::kNone, absl::OkStatus()};
    const auto youngest = std::prev(running_.end());
    if (youngest->first != attempt.age) {
      Release(now, attempts_.find(youngest->second), preempted, sink);
    } else if (running_.size() > 1) {
      Release(now, it, preempted, sink);
      return false;
    } else if (attempts_.size() > 1) {
      return false;  // others land or are being released: their pages come free in bounded time
    } else {
      // It has the whole rank and needs more: as long as it can get.
      Release(now, it, {EndKind::kFinished, FinishReason::kLength, absl::OkStatus()}, sink);
      return false;
    }
  }
  return true;
}

// --- time and credits ---------------------------------------------------------------------

void DecodePlanner::Expire(Tick now, DecodeActionSink& sink) {
  for (auto it = attempts_.begin(); it != attempts_.end();) {
    const auto here = it++;
    Attempt& attempt = here->second;
    if (attempt.ended) {
      if (attempt.wait_until > now) continue;
      ++sink.report.release_timeouts;
      EndQuarantine(here);
    } else if (attempt.deadline <= now) {
      Release(now, here,
              {EndKind::kFailed, FinishReason::kError,
               absl::DeadlineExceededError("the deadline passed on the decode rank")},
              sink);
    } else if (attempt.wait_until <= now) {
      const bool replied = attempt.replied;
      ++(replied ? sink.report.handoff_timeouts : sink.report.prefill_errors);
      Release(now, here,
              {EndKind::kRetryable, FinishReason::kNone,
               absl::UnavailableError(replied ? "part of the hand-off never arrived"
                                              : "the prefill worker did not reply in time")},
              sink);
    }
  }
}

Tick DecodePlanner::NextWake() const {
  Tick wake = Tick::Infinite();
  for (const auto& [key, attempt] : attempts_) {
    wake = std::min(wake, attempt.wait_until);
    if (!attempt.ended) wake = std::min(wake, attempt.deadline);
  }
  return wake;
}

int32_t DecodePlanner::LandingCount() const {
  int32_t landing = 0;
  for (const auto& [key, attempt] : attempts_) landing += attempt.landing_open ? 1 : 0;
  return landing;
}

// Credits cannot be taken back, so they are given sparingly: together with the landings under way
// they fill neither the landings, nor the sequences, nor the free pages. A router that holds none
// may always have one while there is a free landing, whatever the others hoard: a start may be
// refused.
void DecodePlanner::GrantCredits() {
  if (draining_ || routers_.empty()) return;
  const int32_t landing = LandingCount();
  const auto sequences = static_cast<int32_t>(attempts_.size());
  if (landing >= options_.max_landings || sequences >= options_.max_sequences) return;
  int64_t outstanding = 0;
  for (const auto& [id, router] : routers_) {
    outstanding += static_cast<int64_t>(router.credits_granted - router.starts_received);
  }
  const int64_t share =
      std::max<int64_t>(1, options_.max_landings / static_cast<int64_t>(routers_.size()));
  const int64_t room = std::min({int64_t{options_.max_landings} - landing,
                                 int64_t{options_.max_sequences} - sequences,
                                 int64_t{pages_.free_pages()} / options_.pages_per_credit});
  const bool idle = attempts_.empty();
  for (auto& [id, router] : routers_) {
    auto held = static_cast<int64_t>(router.credits_granted - router.starts_received);
    while (held < share && outstanding < room) {
      ++router.credits_granted;
      ++held;
      ++outstanding;
    }
    if (held == 0 && (idle || pages_.free_pages() >= options_.pages_per_credit)) {
      ++router.credits_granted;
      ++outstanding;
    }
  }
}

DecodeStatus DecodePlanner::StatusFor(const Router& router) const {
  DecodeStatus status;
  status.credits_granted = router.credits_granted;
  status.starts_received = router.starts_received;
  status.total_pages = pages_.total_pages();
  status.free_pages = pages_.free_pages();
  status.running = static_cast<int32_t>(running_.size());
  status.landing = LandingCount();
  status.draining = draining_;
  status.caches_prefixes = pages_.caches();
  status.cached_pages = pages_.cached_pages();
  return status;
}

void DecodePlanner::SendUpdates(DecodeActionSink& sink) {
  for (auto& [id, router] : routers_) {
    const DecodeStatus status = StatusFor(router);
    DecodeUpdate& update = router.update;
    if (router.announced && status == router.last_status && update.chunks.empty() &&
        update.ends.empty() && update.released.empty()) {
      continue;
    }
    router.announced = true;
    router.last_status = status;
    update.status = status;
    sink.Add(SendUpdate{id, std::exchange(update, {})});
  }
}

}  // namespace baton::scheduler
