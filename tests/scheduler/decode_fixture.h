#ifndef BATON_TESTS_SCHEDULER_DECODE_FIXTURE_H_
#define BATON_TESTS_SCHEDULER_DECODE_FIXTURE_H_

// A decode planner with small limits, and short names for what happens around it.

#include "scheduler/decode_planner.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {

inline constexpr RouterId kRouter(5);
inline constexpr TokenId kEosToken = 2;

inline DecodePlannerOptions SmallDecodeOptions() {
  DecodePlannerOptions options;
  options.page_tokens = 4;
  options.total_pages = 10;
  options.max_positions = 200;
  options.transport_address = "here";
  options.first_epoch = 1000;
  options.eos_token_ids = {kEosToken};
  options.max_landings = 4;
  options.max_sequences = 6;
  options.max_batch_rows = 8;
  options.reserve_output_tokens = 1;
  options.pages_per_credit = 1;
  options.prefix_cache = false;  // its tests are decode_cache_test.cc
  options.handoff_timeout = Duration::Millis(100);
  options.prefill_timeout = Duration::Millis(1'000);
  options.release_timeout = Duration::Millis(300);
  return options;
}

using DecodeHarness = Harness<DecodePlanner, DecodeEvent, DecodeActionSink>;

class DecodePlannerTest : public testing::Test {
 protected:
  explicit DecodePlannerTest(const DecodePlannerOptions& options = SmallDecodeOptions())
      : h(options) {
    h.Step({RouterJoined{kRouter}});
  }

  static RequestKey Key(uint64_t request) { return {RequestId(request), 0}; }

  StartReceived Start(uint64_t request, int prompt, int max_tokens = 50, int delivered = 0) {
    StartReceived event;
    event.router = kRouter;
    event.request.key = Key(request);
    event.request.prompt.assign(static_cast<size_t>(prompt), 9);
    event.request.delivered.assign(static_cast<size_t>(delivered), 8);
    event.request.sampling.max_tokens = max_tokens;
    event.request.remaining = Duration::Seconds(60);
    event.request.prefill_address = "prefill";
    event.received_at = h.now;
    return event;
  }

  PrefillReplied Reply(uint64_t request, TokenId first = 7, bool has_first = true) {
    PrefillReplied event;
    event.reply.key = Key(request);
    event.reply.has_first_token = has_first;
    event.reply.first_token.token = first;
    event.reply.messages_posted = 3;
    event.received_at = h.now;
    return event;
  }

  static PrefillReplied Refusal(uint64_t request, absl::Status status) {
    PrefillReplied event;
    event.reply.key = Key(request);
    event.reply.status = std::move(status);
    return event;
  }

  LandingCompleted Landed(uint64_t request, uint32_t messages = 3) {
    return {Key(request), epochs.at(request), messages};
  }

  // Remembers the epochs of the landings that the step opened.
  void Step(std::vector<DecodeEvent> events = {}) {
    h.Step(std::move(events));
    for (const OpenLanding& open : h.All<OpenLanding>()) {
      epochs[open.key.request.value()] = open.epoch;
    }
  }

  // Takes a request through prefill and landing; its first pass is planned.
  void Land(uint64_t request, int prompt, int max_tokens = 50) {
    std::vector<DecodeEvent> events;
    if (!h.All<RunDecodePass>().empty()) events.push_back(Pass());
    events.push_back(Start(request, prompt, max_tokens));
    Step(events);
    events.clear();
    if (!h.All<RunDecodePass>().empty()) events.push_back(Pass());
    events.push_back(Reply(request));
    events.push_back(Landed(request));
    Step(events);
  }

  PassFinished Pass(TokenId token = 6) {
    PassFinished finished;
    const RunDecodePass pass = h.All<RunDecodePass>().at(0);
    for (const SequenceSlice& slice : pass.plan.slices) {
      if (!slice.sample) continue;
      SampledToken sampled;
      sampled.key = slice.key;
      sampled.token = token;
      finished.output.tokens.push_back(sampled);
    }
    finished.finished_at = h.now;
    return finished;
  }

  BatchPlan Plan() { return h.All<RunDecodePass>().at(0).plan; }

  DecodeUpdate Update() {
    const auto updates = h.All<SendUpdate>();
    EXPECT_EQ(updates.size(), 1u);
    return updates.empty() ? DecodeUpdate() : updates[0].update;
  }

  RequestEnd OnlyEnd() {
    const DecodeUpdate update = Update();
    EXPECT_EQ(update.ends.size(), 1u);
    return update.ends.empty() ? RequestEnd() : update.ends[0];
  }

  DecodeHarness h;
  std::map<uint64_t, Epoch> epochs;
};

}  // namespace baton::scheduler

#endif  // BATON_TESTS_SCHEDULER_DECODE_FIXTURE_H_
