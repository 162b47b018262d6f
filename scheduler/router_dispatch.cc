// Router, continued: which queued request goes where.

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "scheduler/page_pool.h"
#include "scheduler/router.h"

namespace baton::scheduler {

void Router::FailWithoutWorkers(Tick now, RouterActionSink& sink) {
  const bool decode = std::any_of(decode_.begin(), decode_.end(),
                                  [](const auto& entry) { return !entry.second.status.draining; });
  const bool prefill = std::any_of(prefill_.begin(), prefill_.end(),
                                   [](const auto& entry) { return !entry.second.status.draining; });
  if (decode && prefill) {
    workers_missing_since_ = Tick::Infinite();
    return;
  }
  if (workers_missing_since_.infinite()) workers_missing_since_ = now;
  for (auto at = queue_.begin(); at != queue_.end();) {
    const auto it = requests_.find((at++)->second);
    const Tick since = std::max(workers_missing_since_, it->second.queued_at);
    if (since + options_.no_workers_timeout > now) continue;
    Finish(now, it, FinishReason::kError,
           absl::UnavailableError(absl::StrCat("no ", decode ? "prefill worker" : "decode rank",
                                               " is there to take the request")),
           sink);
  }
}

// --- dispatch -----------------------------------------------------------------------------

absl::Status Router::FitsSomewhere(const Request& request) const {
  const int32_t page_tokens = identity_.page_tokens;
  if (page_tokens == 0) return absl::OkStatus();  // no worker known yet
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int32_t prompt_pages = PagesFor(prompt, page_tokens);
  if (largest_prefill_pages_ > 0 && prompt_pages > largest_prefill_pages_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt's ", prompt, " tokens need ", prompt_pages,
        " pages; the largest prefill worker has ", largest_prefill_pages_, ": shorten the prompt"));
  }
  const int64_t tokens = prompt + request.sampling.max_tokens - 1;
  const int32_t pages = PagesFor(tokens, page_tokens);
  if (largest_decode_pages_ > 0 && pages > largest_decode_pages_) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt and max_tokens (", prompt, " + ", request.sampling.max_tokens,
                     ") need ", pages, " pages; the largest decode rank has ",
                     largest_decode_pages_, ": lower max_tokens or shorten the prompt"));
  }
  return absl::OkStatus();
}

int32_t Router::PagesAtStart(const Request& request) const {
  return PagesFor(ReservedTokens(static_cast<int64_t>(request.prompt.size()),
                                 static_cast<int64_t>(request.delivered.size()),
                                 request.sampling.max_tokens, options_.reserve_output_tokens),
                  identity_.page_tokens);
}

bool Router::AnyCredit() const {
  return std::any_of(decode_.begin(), decode_.end(), [](const auto& entry) {
    const DecodeRank& rank = entry.second;
    return !rank.status.draining && rank.starts_sent < rank.status.credits_granted;
  });
}

// In order of arrival. A request that fits nowhere now lets later ones pass, but only so often:
// then nothing behind it starts until it does, so that it meets a cluster that empties.
void Router::Dispatch(Tick now, RouterActionSink& sink) {
  next_dispatch_ = Tick::Infinite();
  std::vector<Request*> passed_over;
  int32_t scanned = 0;
  bool at_limit = false;
  bool credit = !queue_.empty() && AnyCredit();  // a full cluster is not searched for each request
  for (auto at = queue_.begin(); at != queue_.end() && scanned < options_.scan_depth; ++scanned) {
    const auto it = requests_.find((at++)->second);
    Request& request = it->second;
    const absl::Status fits = FitsSomewhere(request);  // workers may have joined since it came
    if (!fits.ok()) {
      Finish(now, it, FinishReason::kError, fits, sink);
      continue;
    }
    if (request.not_before > now) {
      next_dispatch_ = std::min(next_dispatch_, request.not_before);
      continue;  // it backs off by itself: nobody overtakes it unfairly
    }
    if (credit && TryDispatch(now, request, sink)) {
      for (Request* earlier : passed_over) {
        ++earlier->overtaken;
        at_limit = at_limit || earlier->overtaken >= options_.max_overtakes;
      }
      credit = AnyCredit();
    } else {
      passed_over.push_back(&request);
      at_limit = at_limit || request.overtaken >= options_.max_overtakes;
    }
    if (at_limit) break;
  }
  if (passed_over.empty()) return;
  for (const auto& [id, worker] : prefill_) {
    if (worker.suspect_until > now) next_dispatch_ = std::min(next_dispatch_, worker.suspect_until);
  }
}

bool Router::TryDispatch(Tick now, Request& request, RouterActionSink& sink) {
  if (decode_.empty() || prefill_.empty()) return false;
  MakeKeys(request);
  const int32_t pages = PagesAtStart(request);
  const auto decode = PickDecode(now, request, pages);
  if (decode == decode_.end()) return false;
  const auto prefill = PickPrefill(now, request);
  if (prefill == prefill_.end()) return false;

  Attempt attempt;
  attempt.decode = decode->first;
  attempt.prefill = prefill->first;
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int32_t cached_pages = CachedPages(prefill->second.prefixes, request);
  attempt.prompt_pages = PagesFor(prompt_tokens, identity_.page_tokens);
  attempt.prefill_tokens = prompt_tokens - int64_t{cached_pages} * identity_.page_tokens;
  const RequestKey key{request.id, request.fsm.attempt()};
  prefill->second.keys.insert(key);
  decode->second.keys.insert(key);
  prefill->second.last_start = decode->second.last_start = ++starts_;
  ++prefill->second.busy;
  prefill->second.busy_pages += attempt.prompt_pages;
  prefill->second.busy_tokens += attempt.prefill_tokens;
  if (prefill->second.status.caches_prefixes) prefill->second.prefixes.Add(request.keys);
  ++decode->second.attempts;
  decode->second.prompt_pages += attempt.prompt_pages;
  ++decode->second.starts_sent;
  decode->second.unseen_pages.push_back(pages);
  decode->second.unseen_sum += pages;
  if (decode->second.status.caches_prefixes) decode->second.prefixes.Add(request.keys);

  request.fsm.To(RequestState::kReserved);
  request.fsm.To(RequestState::kPrefilling);
  request.started_at = now;
  ++request.starts;
  ++sink.report.starts;
  queue_.erase(request.order);

  SendStart start;
  start.decode = attempt.decode;
  start.request.key = key;
  start.request.prompt = request.prompt;
  start.request.delivered = request.delivered;
  start.request.sampling = request.sampling;
  start.request.remaining = request.deadline - now;
  start.request.prefill_address = prefill->second.address;
  start.request.cache_salt = request.cache_salt;
  sink.Add(std::move(start));
  attempts_.emplace(key, attempt);
  return true;
}

// How much a rank does beside its pages: its requests, then how long ago it got one, so that equals
// take turns. Other routers' requests show only in its status, own new ones only here.
std::pair<int32_t, uint64_t> Router::Load(const DecodeRank& rank) {
  return {std::max(rank.attempts, rank.status.running + rank.status.landing), rank.last_start};
}

void Router::MakeKeys(Request& request) const {
  if (request.keys.empty() && identity_.page_tokens > 0) {
    request.keys = PrefixKeys(request.prompt, identity_.page_tokens, request.cache_salt);
  }
}

// How many of the prompt's pages a worker is believed to have and may use.
int32_t Router::CachedPages(const PrefixIndex& prefixes, const Request& request) const {
  const auto reusable = static_cast<size_t>(
      ReusablePages(static_cast<int64_t>(request.prompt.size()), identity_.page_tokens));
  return prefixes.Match(std::span(request.keys).first(std::min(reusable, request.keys.size())));
}

// The share of a rank's pages that would be free after this request; negative when it has no credit
// or not enough of them.
double Router::ShareLeft(const DecodeRank& rank, int32_t pages) {
  if (rank.status.draining || rank.starts_sent >= rank.status.credits_granted) return -1;
  const int32_t left = rank.status.free_pages - rank.unseen_sum - pages;
  return left < 0 ? -1 : static_cast<double>(left) / rank.status.total_pages;
}

// The rank with a credit whose free pages, after this request, are the largest share of its pages;
// among equals the one with the least load. A rank that has pages of the prompt is preferred to it,
// the one with the most of them, while it would be left with at least half of that share: what need
// not be shipped is not worth waiting for on a full rank. One that failed this request, or has just
// failed another, is taken only when no other has room.
std::map<WorkerId, Router::DecodeRank>::iterator Router::PickDecode(Tick now,
                                                                    const Request& request,
                                                                    int32_t pages) {
  const std::vector<WorkerId>& avoided = request.avoided_decode;
  const auto shunned = [&](const auto& entry) {
    return entry.second.suspect_until > now ||
           std::find(avoided.begin(), avoided.end(), entry.first) != avoided.end();
  };
  double best_share = -1;
  double best_of_all = -1;
  for (const auto& entry : decode_) {
    const double share = ShareLeft(entry.second, pages);
    best_of_all = std::max(best_of_all, share);
    if (share > best_share && !shunned(entry)) best_share = share;
  }
  const bool choice = best_share >= 0;
  if (!choice) best_share = best_of_all;
  auto best = decode_.end();
  std::pair<int32_t, double> best_rating;
  for (auto it = decode_.begin(); it != decode_.end(); ++it) {
    const double share = ShareLeft(it->second, pages);
    if (share < 0 || (choice && shunned(*it))) continue;
    const int32_t cached = share >= best_share / 2 ? CachedPages(it->second.prefixes, request) : 0;
    const std::pair rating(cached, share);
    if (best == decode_.end() || rating > best_rating ||
        (rating == best_rating && Load(it->second) < Load(best->second))) {
      best = it;
      best_rating = rating;
    }
  }
  return best;
}

// What taking the request on would cost the worker, in prompt tokens to compute: those before it
// and those of its own that the worker is not believed to have.
int64_t Router::PrefillCost(const PrefillWorker& worker, const Request& request) const {
  return std::max(worker.status.queued_tokens, worker.busy_tokens) +
         static_cast<int64_t>(request.prompt.size()) -
         int64_t{CachedPages(worker.prefixes, request)} * identity_.page_tokens;
}

// The cheapest worker with a free slot and pages; equals take turns. One that just failed this
// request, or is suspected of being gone, is taken only when the cluster has no other.
std::map<WorkerId, Router::PrefillWorker>::iterator Router::PickPrefill(Tick now,
                                                                        const Request& request) {
  const int32_t pages =
      PagesFor(static_cast<int64_t>(request.prompt.size()), identity_.page_tokens);
  const auto shunned = [&](const auto& entry) {
    return entry.second.suspect_until > now ||
           (request.avoids_prefill && request.avoided_prefill == entry.first);
  };
  const bool choice = std::any_of(prefill_.begin(), prefill_.end(), [&](const auto& entry) {
    return !entry.second.status.draining && !shunned(entry);
  });
  auto best = prefill_.end();
  std::pair<int64_t, uint64_t> best_cost;
  for (auto it = prefill_.begin(); it != prefill_.end(); ++it) {
    const PrefillWorker& worker = it->second;
    const PrefillStatus& status = worker.status;
    if (status.draining || (choice && shunned(*it))) continue;
    // Own attempts may not have reached the worker yet, and other routers' show only in its status.
    if (std::max(worker.busy, status.running) >= status.slots) continue;
    const int32_t used = std::max(worker.busy_pages, status.total_pages - status.free_pages);
    if (used + pages > status.total_pages) continue;
    const std::pair cost(PrefillCost(worker, request), worker.last_start);
    if (best == prefill_.end() || cost < best_cost) {
      best = it;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace baton::scheduler
