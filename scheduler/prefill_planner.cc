#include "scheduler/prefill_planner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/pass_result.h"

namespace baton::scheduler {

PrefillPlanner::PrefillPlanner(const PrefillPlannerOptions& options)
    : options_(options), pages_(options.total_pages, options.page_tokens, options.prefix_cache) {
  BATON_CHECK_GT(options.page_tokens, 0);
  BATON_CHECK_GT(options.total_pages, 0);
  BATON_CHECK_GT(options.max_positions, 0);
  BATON_CHECK_GT(options.slots, 0);
  BATON_CHECK_GT(options.chunk_tokens, 0);
  published_.total_pages = -1;  // differs from every status, so the first step publishes
}

void PrefillPlanner::Step(Tick now, absl::Span<const PrefillEvent> events,
                          PrefillActionSink& sink) {
  for (const PrefillEvent& event : events) {
    std::visit([&](const auto& e) { Apply(now, e, sink); }, event);
  }
  BATON_CHECK_MSG(pass_.empty(), "a step without the result of the pass that was asked for");
  Expire(now, sink);
  PlanPass(now, sink);

  PrefillReport& report = sink.report;
  const PrefillStatus status = this->status();
  report.total_pages = status.total_pages;
  report.free_pages = status.free_pages;
  report.cached_pages = status.cached_pages;
  report.evicted_pages += pages_.evictions() - std::exchange(evictions_seen_, pages_.evictions());
  report.running = status.running;
  report.waiting =
      static_cast<int32_t>(std::count_if(calls_.begin(), calls_.end(), [](const auto& entry) {
        return entry.second.fsm.state() == RequestState::kReserved;
      }));
  report.queued_tokens = status.queued_tokens;
  report.draining = status.draining;
}

// --- events -------------------------------------------------------------------------------

absl::Status PrefillPlanner::CanTakeOn(const PrefillCall& call) const {
  const auto tokens = static_cast<int64_t>(call.prompt.size());
  if (tokens == 0)
    return absl::InvalidArgumentError("the prompt is empty: send at least one token");
  if (tokens > options_.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", tokens,
                                                   " tokens; this worker takes at most ",
                                                   options_.max_positions, ": shorten it"));
  }
  const int32_t pages = PagesFor(tokens, options_.page_tokens);
  const int32_t first = call.landing.first_page;
  if (first < 0 || first >= pages ||
      call.landing.pages.size() != static_cast<size_t>(pages - first)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", tokens, " tokens lands in ", pages, " pages, but the landing ",
                     "has ", call.landing.pages.size(), " from page ", first, " on"));
  }
  if (pages > options_.total_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt needs ", pages, " pages; this worker has ", options_.total_pages,
                     ": give it more KV memory or shorten the prompt"));
  }
  if (draining_) return absl::ResourceExhaustedError("the prefill worker is draining");
  if (static_cast<int32_t>(calls_.size()) >= options_.slots) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", options_.slots, " slots of the prefill worker are taken"));
  }
  if (call.remaining <= Duration()) {
    return absl::DeadlineExceededError("the deadline passed before prefill began");
  }
  return absl::OkStatus();
}

// Cached pages where there are, new ones for the rest; none at all when they do not suffice.
absl::Status PrefillPlanner::TakePages(const PrefillCall& call, PageTable& table) {
  const auto tokens = static_cast<int64_t>(call.prompt.size());
  table = pages_.Find(call.prompt, ReusablePages(tokens, options_.page_tokens), call.cache_salt);
  const int32_t missing =
      PagesFor(tokens, options_.page_tokens) - static_cast<int32_t>(table.pages.size());
  if (pages_.CanGrow(missing)) {
    pages_.Grow(table, missing);
    return absl::OkStatus();
  }
  const int32_t free = pages_.free_pages();
  pages_.Free(table);
  return absl::ResourceExhaustedError(absl::StrCat("the prompt needs ", missing, " pages; ", free,
                                                   " of ", options_.total_pages,
                                                   " are free on the prefill worker"));
}

void PrefillPlanner::Apply(Tick now, const CallReceived& event, PrefillActionSink& sink) {
  ++sink.report.calls;
  if (calls_.contains(event.call.key)) {
    // The same attempt twice: the first one's reply answers both.
    ++sink.report.stale_messages;
    return;
  }
  PageTable table;
  absl::Status status = CanTakeOn(event.call);
  if (status.ok()) status = TakePages(event.call, table);
  if (!status.ok()) {
    ++sink.report.refused;
    SendReply reply{event.caller, {}};
    reply.reply.key = event.call.key;
    reply.reply.status = std::move(status);
    sink.Add(std::move(reply));
    return;
  }
  Call call;
  call.caller = event.caller;
  call.call = event.call;
  call.fsm = RequestFsm(RequestState::kReserved, event.call.key.attempt);
  call.order = next_order_++;
  call.cached = static_cast<int32_t>(table.chain.nodes.size()) * options_.page_tokens;
  call.computed = call.cached;
  call.table = std::move(table);
  call.shipped = event.call.landing.first_page;
  call.received_at = std::min(event.received_at, now);
  call.deadline = call.received_at + event.call.remaining;
  queued_tokens_ += static_cast<int64_t>(event.call.prompt.size()) - call.computed;
  sink.report.lookup_tokens += event.call.prompt.size();
  sink.report.hit_tokens += static_cast<uint64_t>(call.cached);
  fifo_.emplace(call.order, event.call.key);
  sink.Add(OpenHandoff{event.call.key, event.call.landing});
  calls_.emplace(event.call.key, std::move(call));
}

void PrefillPlanner::Apply(Tick, const CallCancelled& event, PrefillActionSink& sink) {
  const auto it = calls_.find(event.key);
  if (it == calls_.end() || it->second.caller != event.caller) {
    ++sink.report.stale_messages;  // its reply is on the way
    return;
  }
  Release(it, RequestState::kCancelled, absl::CancelledError("cancelled by the decode rank"), true,
          sink);
}

void PrefillPlanner::Apply(Tick, const CallerLost& event, PrefillActionSink& sink) {
  for (auto it = calls_.begin(); it != calls_.end();) {
    const auto here = it++;
    if (here->second.caller != event.caller) continue;
    Release(here, RequestState::kCancelled, absl::CancelledError("the decode rank is gone"), false,
            sink);
  }
}

void PrefillPlanner::Apply(Tick now, const HandoffProgressed& event, PrefillActionSink&) {
  const auto it = calls_.find(event.key);
  if (it == calls_.end() || it->second.handoff_until.infinite()) return;
  it->second.handoff_until = now + options_.handoff_timeout;
}

void PrefillPlanner::Apply(Tick, const HandoffFinished& event, PrefillActionSink& sink) {
  const auto it = calls_.find(event.key);
  if (it == calls_.end() || it->second.handed_off) {
    ++sink.report.stale_messages;
    return;
  }
  Call& call = it->second;
  call.messages_posted = event.messages_posted;
  call.bytes_posted = event.bytes_posted;
  if (!event.status.ok()) {
    ++sink.report.handoff_failures;
    Release(it, RequestState::kFailed,
            absl::UnavailableError(absl::StrCat("the hand-off failed: ", event.status.ToString())),
            true, sink);
    return;
  }
  call.handed_off = true;
  ReplyIfComplete(it, sink);
}

void PrefillPlanner::Apply(Tick, const PassFinished& event, PrefillActionSink& sink) {
  BATON_CHECK_MSG(!pass_.empty(), "the result of a pass that nobody asked for");
  const std::vector<PassSlice> pass = std::exchange(pass_, {});
  PassResult result(event, pass);
  for (const PassSlice& slice : pass) {
    const PassResult::Slice outcome = result.Next(slice);
    const auto it = calls_.find(slice.key);
    if (it == calls_.end()) continue;  // ended by an event before this one
    Call& call = it->second;
    if (!outcome.status.ok()) {
      ++sink.report.pass_failures;
      Release(
          it, RequestState::kFailed,
          absl::InternalError(absl::StrCat("the prefill pass failed: ", outcome.status.ToString())),
          true, sink);
      continue;
    }
    call.computed += slice.rows;
    queued_tokens_ -= slice.rows;
    // Those that a hand-off still reads from: duplicates stay where they are.
    pages_.Publish(call.table, call.call.prompt, call.computed / options_.page_tokens,
                   /*generated=*/false, /*give_up_duplicates=*/false);
    if (outcome.token != nullptr) {
      call.has_first_token = true;
      call.first_token = *outcome.token;
    }
    if (!slice.last) continue;
    fifo_.erase(call.order);
    call.compute = event.finished_at - call.first_chunk_at;
    call.handoff_until = event.finished_at + options_.handoff_timeout;
    ReplyIfComplete(it, sink);
  }
}

void PrefillPlanner::Apply(Tick, const DrainRequested&, PrefillActionSink&) { draining_ = true; }

// --- time ---------------------------------------------------------------------------------

void PrefillPlanner::Expire(Tick now, PrefillActionSink& sink) {
  for (auto it = calls_.begin(); it != calls_.end();) {
    const auto here = it++;
    if (here->second.deadline <= now) {
      Release(here, RequestState::kCancelled,
              absl::DeadlineExceededError("the deadline passed during prefill"), true, sink);
    } else if (here->second.handoff_until <= now) {
      ++sink.report.handoff_failures;
      Release(here, RequestState::kFailed,
              absl::UnavailableError("the hand-off did not get through in time"), true, sink);
    }
  }
}

Tick PrefillPlanner::NextWake() const {
  Tick wake = Tick::Infinite();
  for (const auto& [key, call] : calls_) {
    wake = std::min({wake, call.deadline, call.handoff_until});
  }
  return wake;
}

// --- planning -----------------------------------------------------------------------------

void PrefillPlanner::PlanPass(Tick now, PrefillActionSink& sink) {
  RunPrefillPass pass;
  int32_t budget = options_.chunk_tokens;
  for (const auto& [order, key] : fifo_) {
    if (budget == 0) break;
    Call& call = calls_.at(key);
    SkipCached(call, sink);
    const int32_t left = static_cast<int32_t>(call.call.prompt.size()) - call.computed;
    const int32_t rows = std::min(left, budget);
    budget -= rows;
    AddSlice(now, call, rows, pass);
  }
  const PrefillStatus status = this->status();
  if (!(status == published_)) {
    published_ = status;
    sink.Add(PublishStatus{status});
  }
  if (pass.plan.slices.empty()) return;
  pass.plan.step = ++passes_;
  pass.plan.form = Form::kPrefill;
  sink.report.rows += static_cast<uint32_t>(pass.plan.total_rows);
  sink.Add(std::move(pass));
}

// What other calls have computed since this one came.
void PrefillPlanner::SkipCached(Call& call, PrefillActionSink& sink) {
  const int32_t page_tokens = options_.page_tokens;
  const auto known = static_cast<int32_t>(call.table.chain.nodes.size());
  if (call.computed != known * page_tokens) return;  // inside a page, or it is not in the cache
  const auto tokens = static_cast<int64_t>(call.call.prompt.size());
  const int32_t skipped = page_tokens * pages_.FindMore(call.table, call.call.prompt,
                                                        ReusablePages(tokens, page_tokens));
  call.computed += skipped;
  call.cached += skipped;
  queued_tokens_ -= skipped;
  sink.report.hit_tokens += static_cast<uint64_t>(skipped);
}

void PrefillPlanner::AddSlice(Tick now, Call& call, int32_t rows, RunPrefillPass& pass) {
  if (call.fsm.state() == RequestState::kReserved) {
    call.fsm.To(RequestState::kPrefilling);
    call.first_chunk_at = now;
    call.wait = now - call.received_at;
  }
  const auto prompt_tokens = static_cast<int32_t>(call.call.prompt.size());
  const int32_t end = call.computed + rows;
  const bool last = end == prompt_tokens;
  const bool sample = last && call.call.sample_first_token;

  SequenceSlice slice;
  slice.key = call.call.key;
  slice.sequence = std::span(call.call.prompt).first(static_cast<size_t>(end));
  slice.prompt_tokens = prompt_tokens;
  slice.first_position = call.computed;
  slice.row_count = rows;
  slice.pages = call.table.pages;
  slice.sample = sample;
  slice.sampling = &call.call.sampling;
  pass.plan.slices.push_back(slice);
  pass.plan.total_rows += rows;
  pass_.push_back({slice.key, rows, last, sample});

  // A page ships when its last token is there (cached ones with the first pass behind them); the
  // prompt's last page may be partly filled.
  const int32_t page_tokens = options_.page_tokens;
  const int32_t end_page = last ? PagesFor(end, page_tokens) : end / page_tokens;
  const int32_t first_page = call.shipped;
  if (first_page >= end_page) return;
  call.shipped = end_page;
  HandoffSlice handoff;
  handoff.key = slice.key;
  handoff.first_page = static_cast<uint32_t>(first_page - call.call.landing.first_page);
  handoff.pages.assign(call.table.pages.begin() + first_page, call.table.pages.begin() + end_page);
  handoff.token_count =
      static_cast<uint32_t>(std::min(end, end_page * page_tokens) - first_page * page_tokens);
  handoff.last = last;
  pass.handoffs.push_back(std::move(handoff));
}

// --- the way out --------------------------------------------------------------------------

void PrefillPlanner::ReplyIfComplete(Calls::iterator it, PrefillActionSink& sink) {
  Call& call = it->second;
  if (!call.handed_off || call.computed < static_cast<int32_t>(call.call.prompt.size())) return;
  Release(it, RequestState::kLanded, absl::OkStatus(), true, sink);
}

void PrefillPlanner::Release(Calls::iterator it, RequestState end, absl::Status status, bool reply,
                             PrefillActionSink& sink) {
  Call& call = it->second;
  call.fsm.To(end);
  if (!call.handed_off) sink.Add(AbortHandoff{it->first});
  fifo_.erase(call.order);
  queued_tokens_ -= static_cast<int64_t>(call.call.prompt.size()) - call.computed;
  pages_.Free(call.table);

  PrefillReport& report = sink.report;
  if (end == RequestState::kLanded) ++report.completed;
  if (end == RequestState::kCancelled) ++report.cancelled;
  if (end == RequestState::kFailed) ++report.failed;
  if (reply) {
    PrefillReply message;
    message.key = it->first;
    message.has_first_token = status.ok() && call.has_first_token;
    if (message.has_first_token) message.first_token = std::move(call.first_token);
    message.status = std::move(status);
    message.messages_posted = call.messages_posted;
    message.bytes_posted = call.bytes_posted;
    message.wait = call.wait;
    message.compute = call.compute;
    message.cached_tokens = call.cached;
    sink.Add(SendReply{call.caller, std::move(message)});
  }
  calls_.erase(it);
}

PrefillStatus PrefillPlanner::status() const {
  PrefillStatus status;
  status.total_pages = pages_.total_pages();
  status.free_pages = pages_.free_pages();
  status.caches_prefixes = pages_.caches();
  status.cached_pages = pages_.cached_pages();
  status.slots = options_.slots;
  status.running = static_cast<int32_t>(calls_.size());
  status.queued_tokens = queued_tokens_;
  status.draining = draining_;
  return status;
}

void PrefillPlanner::CheckInvariants() const {
  BATON_CHECK_LE(calls_.size(), static_cast<size_t>(options_.slots));
  std::vector<const PageTable*> tables;
  int64_t left = 0;
  size_t unfinished = 0;
  for (const auto& [key, call] : calls_) {
    BATON_CHECK(call.call.key == key);
    BATON_CHECK(call.fsm.state() == RequestState::kReserved ||
                call.fsm.state() == RequestState::kPrefilling);
    const auto tokens = static_cast<int32_t>(call.call.prompt.size());
    BATON_CHECK_EQ(call.table.pages.size(),
                   static_cast<size_t>(PagesFor(tokens, options_.page_tokens)));
    tables.push_back(&call.table);
    BATON_CHECK(call.cached >= 0 && call.cached <= call.computed && call.computed <= tokens);
    BATON_CHECK_LE(static_cast<int32_t>(call.table.chain.nodes.size()) * options_.page_tokens,
                   call.computed);
    left += tokens - call.computed;
    const bool waiting = call.computed < tokens;
    const auto queued = fifo_.find(call.order);
    BATON_CHECK_EQ(waiting, queued != fifo_.end());
    if (waiting) BATON_CHECK(queued->second == key);
    // Whoever neither computes nor ships would never be answered.
    BATON_CHECK(waiting || (!call.handed_off && !call.handoff_until.infinite()));
    unfinished += waiting ? 1 : 0;
  }
  BATON_CHECK_EQ(fifo_.size(), unfinished);
  BATON_CHECK_EQ(queued_tokens_, left);
  pages_.CheckInvariants(tables, {});
}

}  // namespace baton::scheduler
