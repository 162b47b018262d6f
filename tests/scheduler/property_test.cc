// Random event sequences, well-formed and not, against each decider: invariants hold after every
// step, the promises to the outside hold over the whole sequence, and the same sequence gives the
// same actions. A failing case names its seed: rerun it with --gtest_filter.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/decode_planner.h"
#include "scheduler/prefill_planner.h"
#include "tests/scheduler/describe.h"
#include "tests/scheduler/harness.h"

namespace baton::scheduler {
namespace {

constexpr int kSteps = 1500;

PassFinished RandomPass(const BatchPlan& plan, Tick now, Rng& rng) {
  PassFinished finished;
  finished.finished_at = now;
  if (rng.Chance(0.01)) finished.status = absl::InternalError("random");
  for (const SequenceSlice& slice : plan.slices) {
    if (finished.status.ok() && rng.Chance(0.01)) {
      finished.output.failures.push_back({slice.key, absl::InternalError("random")});
      continue;
    }
    if (!slice.sample || !finished.status.ok()) continue;
    finished.output.tokens.push_back({slice.key, static_cast<TokenId>(rng.Below(12)), 0, {}});
  }
  return finished;
}

// Prompts that share prefixes and fork.
std::vector<TokenId> RandomPrompt(uint64_t length, Rng& rng) {
  std::vector<TokenId> prompt;
  for (uint64_t i = 0; i < length; ++i) prompt.push_back(rng.Chance(0.97) ? 3 : 5);
  return prompt;
}

// --- prefill ------------------------------------------------------------------------------

class PrefillRun {
 public:
  explicit PrefillRun(uint64_t seed) : rng(seed), options(Options(rng)), h(options) {}

  std::string Run() {
    for (int step = 0; step < kSteps; ++step) {
      std::vector<PrefillEvent> events = PassResult();
      lost.clear();
      twice.clear();
      for (uint64_t i = rng.Below(4); i > 0; --i) AddEvent(events);
      h.StepAfter(Duration::Micros(static_cast<int64_t>(rng.Below(3000))), events);
      Log(h.sink, &log);
      Check();
    }
    // Left alone, everything ends.
    for (int step = 0; step < 200 && h.sink.report.running > 0; ++step) {
      h.StepAfter(Duration::Millis(5), PassResult());
      for (const SendReply& reply : h.All<SendReply>()) open.erase(reply.reply.key);
    }
    EXPECT_TRUE(open.empty());
    EXPECT_EQ(h.sink.report.free_pages, 24);
    return log;
  }

 private:
  static PrefillPlannerOptions Options(Rng& rng) {
    PrefillPlannerOptions options;
    options.page_tokens = 4;
    options.total_pages = 24;
    options.max_positions = 80;
    options.slots = 4;
    options.chunk_tokens = 1 + static_cast<int32_t>(rng.Below(20));
    options.handoff_timeout = Duration::Millis(20);
    options.prefix_cache = rng.Chance(0.8);
    return options;
  }

  std::vector<PrefillEvent> PassResult() {
    std::vector<PrefillEvent> events;
    for (const RunPrefillPass& pass : h.All<RunPrefillPass>()) {
      events.push_back(RandomPass(pass.plan, h.now, rng));
    }
    return events;
  }

  void AddEvent(std::vector<PrefillEvent>& events) {
    const RequestKey old = known.empty() ? RequestKey{} : known[rng.Below(known.size())];
    const CallerId caller(1 + rng.Below(3));
    switch (rng.Below(6)) {
      case 0:
      case 1: {
        CallReceived call;
        call.caller = caller;
        call.call.key = rng.Chance(0.05) ? old : RequestKey{RequestId(next++), 0};
        call.call.prompt = RandomPrompt(rng.Below(90), rng);
        const int32_t pages = PagesFor(static_cast<int64_t>(call.call.prompt.size()), 4);
        if (pages > 0 && rng.Chance(0.3)) {
          call.call.landing.first_page =
              static_cast<int32_t>(rng.Below(static_cast<uint64_t>(pages)));
        }
        call.call.landing.pages.resize(static_cast<size_t>(pages - call.call.landing.first_page));
        if (rng.Chance(0.1)) call.call.cache_salt = "tenant";
        call.call.remaining = Duration::Millis(static_cast<int64_t>(rng.Below(200)));
        call.call.sample_first_token = rng.Chance(0.7);
        call.received_at = h.now;
        known.push_back(call.call.key);
        if (open.contains(call.call.key)) twice.insert(call.call.key);
        open.emplace(call.call.key, caller);
        events.push_back(call);
        break;
      }
      case 2:
        events.push_back(CallCancelled{caller, old});
        break;
      case 3:
        if (rng.Chance(0.8)) break;
        events.push_back(CallerLost{caller});
        lost.insert(caller);
        std::erase_if(open, [caller](const auto& e) { return e.second == caller; });
        break;
      default:
        if (shipping.empty()) break;
        if (rng.Chance(0.2)) events.push_back(HandoffProgressed{*shipping.begin()});
        events.push_back(HandoffFinished{
            *shipping.begin(), rng.Chance(0.9) ? absl::OkStatus() : absl::UnavailableError("r"), 3,
            30});
        shipping.erase(shipping.begin());
    }
  }

  void Check() {
    for (const SendReply& reply : h.All<SendReply>()) {
      // Exactly one reply for each call, to its caller. A call that came again in the step that
      // ended it is a call of its own, or not, as the events fell.
      const RequestKey key = reply.reply.key;
      const auto it = open.find(key);
      EXPECT_TRUE(lost.contains(reply.caller) || maybe.contains(key) ||
                  (it != open.end() && it->second == reply.caller));
      maybe.erase(key);
      if (it != open.end()) open.erase(it);
      if (twice.erase(key) > 0) maybe.insert(key);
      shipping.erase(reply.reply.key);
    }
    for (const AbortHandoff& abort : h.All<AbortHandoff>()) shipping.erase(abort.key);
    for (const RunPrefillPass& pass : h.All<RunPrefillPass>()) {
      EXPECT_LE(pass.plan.total_rows, options.chunk_tokens);
      for (const HandoffSlice& slice : pass.handoffs) {
        if (slice.last) shipping.insert(slice.key);
      }
    }
  }

  Rng rng;
  const PrefillPlannerOptions options;
  Harness<PrefillPlanner, PrefillEvent, PrefillActionSink> h;
  std::string log;
  std::map<RequestKey, CallerId> open;  // calls that are owed a reply
  std::set<RequestKey> shipping;        // hand-offs under way
  std::set<RequestKey> twice;           // in this step: received again while open
  std::set<RequestKey> maybe;           // may be owed one more reply
  std::set<CallerId> lost;              // in this step: may have been answered just before
  std::vector<RequestKey> known;
  uint64_t next = 1;
};

// --- decode -------------------------------------------------------------------------------

class DecodeRun {
 public:
  explicit DecodeRun(uint64_t seed) : rng(seed), options(Options(rng)), h(options) {}

  std::string Run() {
    for (int step = 0; step < kSteps + 400; ++step) {
      const bool quiet = step >= kSteps;  // left alone, everything ends
      std::vector<DecodeEvent> events;
      for (const RunDecodePass& pass : h.All<RunDecodePass>()) {
        events.push_back(RandomPass(pass.plan, h.now, rng));
      }
      for (uint64_t i = quiet ? 0 : rng.Below(5); i > 0; --i) AddEvent(events);
      h.StepAfter(
          quiet ? Duration::Millis(10) : Duration::Micros(static_cast<int64_t>(rng.Below(3000))),
          events);
      Log(h.sink, &log);
      Check();
    }
    for (const auto& [key, count] : ends) EXPECT_EQ(count, 1) << key;
    EXPECT_EQ(h.sink.report.free_pages, 30);
    return log;
  }

 private:
  static DecodePlannerOptions Options(Rng& rng) {
    DecodePlannerOptions options;
    options.page_tokens = 4;
    options.total_pages = 30;
    options.max_positions = 100;
    options.max_landings = 4;
    options.max_sequences = 6;
    options.max_batch_rows = 10;
    options.reserve_output_tokens = 1 + static_cast<int32_t>(rng.Below(8));
    options.pages_per_credit = 2;
    options.eos_token_ids = {0};
    options.handoff_timeout = Duration::Millis(30);
    options.prefill_timeout = Duration::Millis(80);
    options.release_timeout = Duration::Millis(50);
    options.prefix_cache = rng.Chance(0.8);
    options.reuse_generated = rng.Chance(0.3);
    return options;
  }

  void AddEvent(std::vector<DecodeEvent>& events) {
    switch (rng.Below(8)) {
      case 0:
        if (joined && rng.Chance(0.97)) break;
        events.push_back(RouterJoined{router});
        joined = true;
        ends.clear();  // whatever was started before will not be told
        next_index.clear();
        break;
      case 1:
      case 2:
        return AddStart(events);
      case 3:
        if (ends.empty() || rng.Chance(0.7)) break;
        events.push_back(CancelReceived{
            router,
            {std::next(ends.begin(), static_cast<ptrdiff_t>(rng.Below(ends.size())))->first}});
        break;
      case 4:
      case 5:
        return AddReply(events);
      default:
        return AddLanding(events);
    }
  }

  void AddStart(std::vector<DecodeEvent>& events) {
    if (!joined) return;
    StartReceived start;
    start.router = router;
    start.request.key = {RequestId(next++), static_cast<uint32_t>(rng.Below(3))};
    start.request.prompt = RandomPrompt(rng.Below(60), rng);
    if (rng.Chance(0.1)) start.request.cache_salt = "tenant";
    start.request.delivered.assign(rng.Below(3) * rng.Below(8), 4);
    start.request.sampling.max_tokens = 1 + static_cast<int32_t>(rng.Below(40));
    start.request.remaining = Duration::Millis(static_cast<int64_t>(rng.Below(400)));
    start.received_at = h.now;
    ends.emplace(start.request.key, 0);
    next_index[start.request.key] = static_cast<int32_t>(start.request.delivered.size());
    events.push_back(start);
  }

  void AddReply(std::vector<DecodeEvent>& events) {
    if (calls.empty()) return;
    const RequestKey key = *calls.begin();
    calls.erase(calls.begin());
    if (rng.Chance(0.1)) {
      events.push_back(PrefillCallFailed{key, absl::UnavailableError("r"), rng.Chance(0.5)});
      return;
    }
    PrefillReplied reply;
    reply.reply.key = key;
    if (rng.Chance(0.15)) reply.reply.status = RandomStatus(rng);
    reply.reply.has_first_token = next_index.contains(key) && next_index.at(key) == 0;
    reply.reply.first_token.token = static_cast<TokenId>(rng.Below(12));
    reply.reply.messages_posted = 2;
    reply.received_at = h.now;
    events.push_back(reply);
  }

  void AddLanding(std::vector<DecodeEvent>& events) {
    if (landings.empty()) return;
    const auto it = std::next(landings.begin(), static_cast<ptrdiff_t>(rng.Below(landings.size())));
    const OpenLanding open = it->second;
    landings.erase(it);
    if (rng.Chance(0.05)) {
      events.push_back(LandingCorrupted{open.key, open.epoch, absl::DataLossError("r")});
    } else {
      events.push_back(LandingCompleted{open.key, open.epoch, rng.Chance(0.95) ? 2u : 1u});
    }
  }

  void Check() {
    for (const OpenLanding& open : h.All<OpenLanding>()) landings.emplace(open.key, open);
    for (const CallPrefill& call : h.All<CallPrefill>()) calls.insert(call.call.key);
    for (const SendUpdate& send : h.All<SendUpdate>()) {
      for (const TokenChunk& chunk : send.update.chunks) {
        // In order, and never after the end.
        EXPECT_EQ(ends[chunk.key], 0);
        EXPECT_EQ(next_index[chunk.key], chunk.first_index);
        next_index[chunk.key] += static_cast<int32_t>(chunk.tokens.size());
      }
      for (const RequestEnd& end : send.update.ends) EXPECT_EQ(++ends[end.key], 1);
      for (const RequestKey key : send.update.released) EXPECT_EQ(ends[key], 1);
    }
    for (const RunDecodePass& pass : h.All<RunDecodePass>()) {
      EXPECT_LE(pass.plan.total_rows, options.max_batch_rows);
    }
  }

  Rng rng;
  const DecodePlannerOptions options;
  Harness<DecodePlanner, DecodeEvent, DecodeActionSink> h;
  std::string log;
  std::map<RequestKey, int> ends;            // told so far, of every start
  std::map<RequestKey, int32_t> next_index;  // of the chunk to come
  std::map<RequestKey, OpenLanding> landings;
  std::set<RequestKey> calls;
  bool joined = false;
  uint64_t next = 1;
  const RouterId router{1};
};

class PropertyTest : public testing::TestWithParam<uint64_t> {};

TEST_P(PropertyTest, PrefillPlanner) {
  EXPECT_EQ(PrefillRun(GetParam()).Run(), PrefillRun(GetParam()).Run());
}
TEST_P(PropertyTest, DecodePlanner) {
  EXPECT_EQ(DecodeRun(GetParam()).Run(), DecodeRun(GetParam()).Run());
}

INSTANTIATE_TEST_SUITE_P(Seeds, PropertyTest, testing::Range<uint64_t>(1, 21));

}  // namespace
}  // namespace baton::scheduler
