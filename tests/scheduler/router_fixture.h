#ifndef BATON_TESTS_SCHEDULER_ROUTER_FIXTURE_H_
#define BATON_TESTS_SCHEDULER_ROUTER_FIXTURE_H_

// A router with small limits, and short names for what happens around it.

#include "scheduler/router.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {

inline constexpr WorkerId kDecodeA(1), kDecodeB(2), kPrefillA(11), kPrefillB(12);

inline RouterOptions SmallRouterOptions() {
  RouterOptions options;
  options.max_queued = 4;
  options.max_attempts = 3;
  options.max_requeues = 5;
  options.max_overtakes = 2;
  options.reserve_output_tokens = 1;
  options.no_workers_timeout = Duration::Millis(1'000);
  options.release_timeout = Duration::Millis(500);
  options.requeue_backoff = Duration::Millis(1);
  options.max_requeue_backoff = Duration::Millis(4);
  options.suspect_period = Duration::Millis(100);
  return options;
}

inline WorkerIdentity Identity(const char* role) {
  WorkerIdentity identity;
  identity.role = role;
  identity.instance = "x";
  identity.model_hash = "h";
  identity.page_tokens = 4;
  return identity;
}

class RouterTest : public testing::Test {
 protected:
  static DecodeStatus Decode(uint64_t credits = 10, int32_t free_pages = 20) {
    DecodeStatus status;
    status.credits_granted = credits;
    status.total_pages = 20;
    status.free_pages = free_pages;
    return status;
  }
  static PrefillStatus Prefill(int32_t slots = 4, int64_t queued = 0) {
    PrefillStatus status;
    status.total_pages = 20;
    status.free_pages = 20;
    status.slots = slots;
    status.queued_tokens = queued;
    return status;
  }
  static RouterEvent Join(WorkerId worker, DecodeStatus status = Decode()) {
    return DecodeJoined{worker, Identity("decode"), status};
  }
  static RouterEvent Join(WorkerId worker, PrefillStatus status) {
    return PrefillJoined{worker, worker == kPrefillA ? "pa" : "pb", Identity("prefill"), status};
  }
  Arrived Arrive(uint64_t id, int prompt = 4, int max_tokens = 10) {
    Arrived arrived;
    arrived.id = RequestId(id);
    arrived.prompt.assign(static_cast<size_t>(prompt), 3);
    arrived.sampling.max_tokens = max_tokens;
    arrived.arrived_at = h.now;
    arrived.deadline = h.now + Duration::Seconds(60);
    return arrived;
  }

  void JoinPair() { h.Step({Join(kDecodeA), Join(kPrefillA, Prefill())}); }

  static TokenChunk Chunk(RequestKey key, int first, std::vector<TokenId> tokens) {
    TokenChunk chunk;
    chunk.key = key;
    chunk.first_index = first;
    chunk.has_first_token_timings = first == 0;
    for (const TokenId token : tokens) chunk.tokens.push_back({key, token, 0, {}});
    return chunk;
  }
  static RequestEnd End(RequestKey key, EndKind kind, absl::Status status = absl::OkStatus()) {
    RequestEnd end;
    end.key = key;
    end.kind = kind;
    end.status = std::move(status);
    if (kind == EndKind::kFinished) end.reason = FinishReason::kLength;
    return end;
  }
  // An update of rank A that has seen every start.
  RouterEvent Update(std::vector<TokenChunk> chunks, std::vector<RequestEnd> ends = {},
                     std::vector<RequestKey> released = {}, WorkerId worker = kDecodeA) {
    DecodeUpdated event;
    event.worker = worker;
    event.update.chunks = std::move(chunks);
    event.update.ends = std::move(ends);
    event.update.released = std::move(released);
    event.update.status = Decode();
    event.update.status.starts_received = 1000;
    event.update.status.credits_granted = 1010;
    event.received_at = h.now;
    return event;
  }

  SendStart OnlyStart() {
    const auto starts = h.All<SendStart>();
    EXPECT_EQ(starts.size(), 1u);
    return starts.empty() ? SendStart() : starts[0];
  }
  RequestResult OnlyResult() {
    const auto results = h.All<RequestResult>();
    EXPECT_EQ(results.size(), 1u);
    return results.empty() ? RequestResult() : results[0];
  }

  static RequestKey Key(uint64_t request, uint32_t attempt = 0) {
    return {RequestId(request), attempt};
  }

  Harness<Router, RouterEvent, RouterActionSink> h{SmallRouterOptions()};
};

}  // namespace baton::scheduler

#endif  // BATON_TESTS_SCHEDULER_ROUTER_FIXTURE_H_
