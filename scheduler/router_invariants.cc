#include <numeric>

#include "base/check.h"
#include "scheduler/router.h"

namespace baton::scheduler {

void Router::CheckInvariants() const {
  size_t queued = 0;
  for (const auto& [id, request] : requests_) {
    BATON_CHECK(request.id == id);
    BATON_CHECK(!IsTerminal(request.fsm.state()));
    BATON_CHECK(deadlines_.contains({request.deadline, id}));
    BATON_CHECK_LE(request.delivered.size(), static_cast<size_t>(request.sampling.max_tokens));
    BATON_CHECK_LT(request.failures, options_.max_attempts);
    BATON_CHECK_LE(request.requeues, options_.max_requeues);
    const bool waits = request.fsm.state() == RequestState::kQueued;
    const auto place = queue_.find(request.order);
    BATON_CHECK_EQ(waits, place != queue_.end() && place->second == id);
    queued += waits ? 1 : 0;
    // Whoever runs has exactly its current attempt, and it is live.
    const auto attempt = attempts_.find({id, request.fsm.attempt()});
    BATON_CHECK_EQ(!waits, attempt != attempts_.end());
    BATON_CHECK(waits || !attempt->second.ended);
  }
  BATON_CHECK_EQ(queue_.size(), queued);
  BATON_CHECK_EQ(deadlines_.size(), requests_.size());

  std::map<WorkerId, int32_t> live;
  std::map<WorkerId, std::set<RequestKey>> keys;
  std::map<WorkerId, int32_t> live_pages;
  std::map<WorkerId, PrefillWorker> busy;
  size_t releasing = 0;
  for (const auto& [key, attempt] : attempts_) {
    BATON_CHECK(decode_.contains(attempt.decode));
    BATON_CHECK_EQ(attempt.ended, release_by_.contains({attempt.release_by, key}));
    releasing += attempt.ended ? 1 : 0;
    live[attempt.decode] += attempt.ended ? 0 : 1;
    keys[attempt.decode].insert(key);
    live_pages[attempt.decode] += attempt.ended ? 0 : attempt.prompt_pages;
    if (!attempt.ended) BATON_CHECK(requests_.contains(key.request));
    if (!attempt.prefill_busy) continue;
    ++busy[attempt.prefill].busy;
    busy[attempt.prefill].keys.insert(key);
    busy[attempt.prefill].busy_pages += attempt.prompt_pages;
    busy[attempt.prefill].busy_tokens += attempt.prefill_tokens;
  }
  BATON_CHECK_EQ(release_by_.size(), releasing);
  for (const auto& [id, rank] : decode_) {
    BATON_CHECK_EQ(rank.attempts, live[id]);
    BATON_CHECK(rank.keys == keys[id]);
    BATON_CHECK_EQ(rank.prompt_pages, live_pages[id]);
    rank.prefixes.CheckInvariants();
    BATON_CHECK_LE(rank.unseen_pages.size(), rank.starts_sent);
    BATON_CHECK_EQ(rank.unseen_sum,
                   std::accumulate(rank.unseen_pages.begin(), rank.unseen_pages.end(), 0));
  }
  for (const auto& [id, worker] : prefill_) {
    BATON_CHECK_EQ(worker.busy, busy[id].busy);
    BATON_CHECK(worker.keys == busy[id].keys);
    BATON_CHECK_EQ(worker.busy_pages, busy[id].busy_pages);
    BATON_CHECK_EQ(worker.busy_tokens, busy[id].busy_tokens);
    worker.prefixes.CheckInvariants();
    busy.erase(id);
  }
  for (const auto& [id, worker] : busy) BATON_CHECK_EQ(worker.busy, 0);
}

}  // namespace baton::scheduler
