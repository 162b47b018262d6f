// A prefill group: the leader's loop and its followers, each rank on its own thread with its own
// pages and endpoint, hand prompts off to one decode rank.

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "decode_worker/landing.h"
#include "gtest/gtest.h"
#include "prefill_worker/group_follower.h"
#include "prefill_worker/group_messages.h"
#include "prefill_worker/loop.h"
#include "tests/sim/stub_runner.h"
#include "transport/inproc/inproc_group.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::prefill_worker {
namespace {

using scheduler::PrefillReply;

struct Outbox final : PrefillOutbox {
  void Send(scheduler::SendReply reply) override { replies.push_back(std::move(reply.reply)); }
  void Send(scheduler::PublishStatus) override {}
  std::vector<PrefillReply> replies;
};
struct Observer final : PrefillObserver {
  void OnStep(const scheduler::PrefillReport&) override {}
};

// One decode rank, driven by the test: checks what lands and says which landings are complete.
class Decode {
 public:
  explicit Decode(transport::InprocFabric& fabric)
      : runner_({.total_pages = 64}, nullptr),
        landings_(runner_),
        endpoint_(fabric.NewEndpoint("decode")) {}

  // `present`: pages of the prompt that stand here already, from an earlier request.
  scheduler::PrefillCall Call(uint64_t request, const std::vector<TokenId>& prompt,
                              std::vector<PageId> present = {}) {
    scheduler::PrefillCall call;
    call.key = {RequestId(request), 0};
    call.prompt = prompt;
    call.sampling.seed = request;
    call.remaining = Duration::Seconds(60);
    call.landing.epoch = Epoch(request + 1000);
    call.landing.transport_address = endpoint_->address();
    const size_t pages = (prompt.size() + sim::kPageTokens - 1) / sim::kPageTokens;
    call.landing.first_page = static_cast<int32_t>(present.size());
    for (size_t i = present.size(); i < pages; ++i) call.landing.pages.emplace_back(next_page_++);
    landings_.Open(
        {call.key, call.landing.epoch, call.landing.pages,
         static_cast<int32_t>(prompt.size()) - call.landing.first_page * sim::kPageTokens});
    present.insert(present.end(), call.landing.pages.begin(), call.landing.pages.end());
    pages_[call.key] = std::move(present);
    return call;
  }

  void Poll(Clock& clock) {
    std::vector<transport::KvEvent> arrived;
    endpoint_->Poll(&arrived, 1000);
    for (const auto& event : arrived) {
      if (event.kind != transport::KvEventKind::kReceived) continue;
      sources_.insert(event.header.source_rank);
      landings_.Receive(clock.Now(), event.header, event.payload, &events_);
    }
  }

  size_t completed() const {
    return static_cast<size_t>(std::count_if(events_.begin(), events_.end(), [](const auto& event) {
      return std::holds_alternative<scheduler::LandingCompleted>(event);
    }));
  }
  const std::set<uint32_t>& sources() const { return sources_; }

  // The token behind prompt and `first`, which reads every latent that landed.
  TokenId Second(const scheduler::PrefillCall& call, TokenId first) {
    std::vector<TokenId> sequence = call.prompt;
    sequence.push_back(first);
    const int32_t prompt = static_cast<int32_t>(call.prompt.size());
    std::vector<PageId> pages = pages_.at(call.key);
    if (sequence.size() > pages.size() * sim::kPageTokens) pages.emplace_back(next_page_++);
    scheduler::BatchPlan plan;
    plan.form = scheduler::Form::kDecode;
    plan.total_rows = 1;
    plan.slices.push_back({.key = call.key,
                           .sequence = sequence,
                           .prompt_tokens = prompt,
                           .first_position = prompt,
                           .row_count = 1,
                           .pages = pages,
                           .sample = true,
                           .sampling = &call.sampling});
    scheduler::StepOutput output;
    EXPECT_TRUE(runner_.Run(plan, nullptr, &output).ok());
    return output.tokens.at(0).token;
  }

 private:
  sim::StubRunner runner_;
  decode_worker::LandingTable landings_;
  std::unique_ptr<transport::KvTransport> endpoint_;
  std::map<RequestKey, std::vector<PageId>> pages_;
  std::vector<scheduler::DecodeEvent> events_;
  std::set<uint32_t> sources_;
  uint32_t next_page_ = 0;
};

class PrefillGroupTest : public testing::TestWithParam<int> {
 protected:
  static constexpr Duration kTimeout = Duration::Seconds(5);

  PrefillGroupTest()
      : clock_(std::make_shared<MonotonicClock>()), groups_(clock_), decode_(fabric_) {}

  // A follower's whole life, on a thread of its own.
  void Follow(int rank) {
    auto collectives = Join(rank);
    ASSERT_NE(collectives, nullptr);
    sim::StubRunner runner({.total_pages = 32, .fault_seed = static_cast<uint64_t>(rank) + 9},
                           nullptr);
    auto endpoint = fabric_.NewEndpoint("follower");
    GroupLink link(*collectives, kTimeout);
    BoundedQueue<int> wakeups(1);
    collectives->SetWakeup([&wakeups] { wakeups.Wake(); });
    endpoint->SetWakeup([&wakeups] { wakeups.Wake(); });
    auto follower =
        GroupFollower::Create(Handoff(rank), *clock_, link, runner, std::move(endpoint));
    ASSERT_TRUE(follower.ok()) << follower.status();
    while (!(*follower)->stopped() && (*follower)->status().ok()) {
      if (!(*follower)->Tick().busy) wakeups.WaitFor(Duration::Millis(1));
    }
    EXPECT_EQ((*follower)->status().ok(), !breaks_) << (*follower)->status();
    collectives->SetWakeup([] {});
  }

  std::unique_ptr<transport::Collectives> Join(int rank) {
    auto group = groups_.NewRendezvous()->Join(
        {.group_id = "prefill-0", .world_size = GetParam(), .rank = rank});
    EXPECT_TRUE(group.ok()) << group.status();
    return group.ok() ? std::move(*group) : nullptr;
  }

  HandoffSenderOptions Handoff(int rank) const {
    return {.staging_bytes = staging_bytes_, .rank = rank, .ranks = GetParam()};
  }

  // Runs the leader on this thread: `body(loop, inbox)`.
  template <typename Body>
  void Lead(const Body& body) {
    std::vector<std::thread> followers;
    for (int rank = 1; rank < GetParam(); ++rank) {
      followers.emplace_back([this, rank] { Follow(rank); });
    }
    {
      const auto collectives = Join(0);
      sim::StubRunner runner({.total_pages = 32}, nullptr);
      GroupLink link(*collectives, kTimeout);
      PrefillInbox inbox(64);
      Observer observer;
      PrefillLoopOptions options;
      options.planner.chunk_tokens = 40;
      options.handoff = Handoff(0);
      options.group = &link;
      collectives->SetWakeup([&inbox] { inbox.Wake(); });
      auto loop = PrefillLoop::Create(options, *clock_, runner, fabric_.NewEndpoint("leader"),
                                      inbox, outbox_, observer);
      ASSERT_TRUE(loop.ok()) << loop.status();
      body(**loop, inbox);
      if (breaks_) collectives->Abort(absl::UnavailableError("the leader is gone"));
      loop->reset();
      collectives->SetWakeup([] {});
    }
    for (std::thread& follower : followers) follower.join();
  }

  // Ticks loop and decode rank until `done`, at most 20 s.
  template <typename Done>
  void TickUntil(PrefillLoop& loop, PrefillInbox& inbox, const Done& done) {
    const Tick end = clock_->Now() + Duration::Seconds(20);
    while (!done() && clock_->Now() < end) {
      if (!loop.Tick().busy) inbox.WaitFor(Duration::Millis(1));
      decode_.Poll(*clock_);
    }
    EXPECT_TRUE(done());
  }

  const std::shared_ptr<Clock> clock_;
  transport::InprocGroups groups_;
  transport::InprocFabric fabric_;
  Decode decode_;
  Outbox outbox_;
  uint64_t staging_bytes_ = uint64_t{1} << 20;
  bool breaks_ = false;
};

std::vector<TokenId> Prompt(size_t length, uint64_t seed) {
  Rng rng(seed);
  std::vector<TokenId> prompt(length);
  for (TokenId& token : prompt) token = static_cast<TokenId>(1 + rng.Below(sim::kVocabulary - 1));
  return prompt;
}

TEST_P(PrefillGroupTest, AllRanksTogetherHandOffEveryPage) {
  // With room for one page in staging, shares are worked off long after their pass.
  staging_bytes_ = sizeof(uint64_t) * sim::kPageTokens;
  Lead([this](PrefillLoop& loop, PrefillInbox& inbox) {
    std::vector<scheduler::PrefillCall> calls;
    for (const size_t length : {1, 15, 16, 17, 100, 250}) {
      calls.push_back(decode_.Call(calls.size() + 1, Prompt(length, length)));
      ASSERT_TRUE(inbox.TryPush(
          scheduler::CallReceived{scheduler::CallerId(1), calls.back(), clock_->Now()}));
    }
    TickUntil(loop, inbox, [&] {
      return outbox_.replies.size() == calls.size() && decode_.completed() == calls.size();
    });
    std::map<RequestKey, PrefillReply> replies;
    for (const PrefillReply& reply : outbox_.replies) replies[reply.key] = reply;
    for (const scheduler::PrefillCall& call : calls) {
      const PrefillReply& reply = replies[call.key];
      ASSERT_TRUE(reply.status.ok()) << reply.status;
      EXPECT_EQ(reply.bytes_posted, call.prompt.size() * sizeof(uint64_t) * sim::kLayers);
      scheduler::SamplingParams sampling = call.sampling;
      sampling.max_tokens = 2;
      sampling.ignore_eos = true;
      const std::vector<TokenId> expected = sim::OracleTokens(call.prompt, sampling, 1).tokens;
      EXPECT_EQ(reply.first_token.token, expected[0]);
      EXPECT_EQ(decode_.Second(call, reply.first_token.token), expected[1]);
    }
    EXPECT_EQ(decode_.sources().size(), static_cast<size_t>(GetParam()));
  });
}

// Every rank has the latents of every cached page, so each ships its share of them; those that
// decode has already are shipped by none.
TEST_P(PrefillGroupTest, CachedPagesShipFromAllRanks) {
  Lead([this](PrefillLoop& loop, PrefillInbox& inbox) {
    const auto run = [&](const scheduler::PrefillCall& call) {
      const size_t before = outbox_.replies.size();
      const size_t landed = decode_.completed();
      EXPECT_TRUE(
          inbox.TryPush(scheduler::CallReceived{scheduler::CallerId(1), call, clock_->Now()}));
      TickUntil(loop, inbox,
                [&] { return outbox_.replies.size() > before && decode_.completed() > landed; });
      const PrefillReply& reply = outbox_.replies.back();
      EXPECT_TRUE(reply.status.ok()) << reply.status;
      scheduler::SamplingParams sampling = call.sampling;
      sampling.max_tokens = 2;
      sampling.ignore_eos = true;
      const std::vector<TokenId> expected = sim::OracleTokens(call.prompt, sampling, 1).tokens;
      EXPECT_EQ(reply.first_token.token, expected[0]);
      EXPECT_EQ(decode_.Second(call, reply.first_token.token), expected[1]);
      return reply;
    };
    const scheduler::PrefillCall cold = decode_.Call(1, Prompt(150, 1));
    EXPECT_EQ(run(cold).cached_tokens, 0);
    EXPECT_EQ(run(decode_.Call(2, Prompt(170, 1))).cached_tokens, 144);
    const std::vector<PageId> present(cold.landing.pages.begin(), cold.landing.pages.begin() + 5);
    const PrefillReply last = run(decode_.Call(3, Prompt(170, 1), present));
    EXPECT_EQ(last.cached_tokens, 160);
    EXPECT_EQ(last.bytes_posted, 90 * sizeof(uint64_t) * sim::kLayers);
  });
}

// One rank cannot reach the decode rank: the call fails as a whole, on all ranks, and the next one
// works.
TEST_P(PrefillGroupTest, AShareThatFailsEndsTheWholeHandoff) {
  Lead([this](PrefillLoop& loop, PrefillInbox& inbox) {
    scheduler::PrefillCall bad = decode_.Call(1, Prompt(100, 1));
    bad.landing.transport_address = "carrier pigeon";
    ASSERT_TRUE(inbox.TryPush(scheduler::CallReceived{scheduler::CallerId(1), bad, clock_->Now()}));
    TickUntil(loop, inbox, [&] { return outbox_.replies.size() == 1; });
    EXPECT_EQ(outbox_.replies[0].status.code(), absl::StatusCode::kUnavailable)
        << outbox_.replies[0].status;
    const scheduler::PrefillCall good = decode_.Call(2, Prompt(100, 2));
    ASSERT_TRUE(
        inbox.TryPush(scheduler::CallReceived{scheduler::CallerId(1), good, clock_->Now()}));
    TickUntil(loop, inbox, [&] { return outbox_.replies.size() == 2 && decode_.completed() == 1; });
    EXPECT_TRUE(outbox_.replies[1].status.ok()) << outbox_.replies[1].status;
  });
}

TEST_P(PrefillGroupTest, CancelledCallsLeaveNothingOnAnyRank) {
  staging_bytes_ = sizeof(uint64_t) * sim::kPageTokens;
  Lead([this](PrefillLoop& loop, PrefillInbox& inbox) {
    for (uint64_t request = 1; request <= 5; ++request) {
      const scheduler::PrefillCall call = decode_.Call(request, Prompt(150, request));
      ASSERT_TRUE(
          inbox.TryPush(scheduler::CallReceived{scheduler::CallerId(1), call, clock_->Now()}));
      // After one pass, two, ...
      for (uint64_t tick = 0; tick < request; ++tick) loop.Tick();
      ASSERT_TRUE(inbox.TryPush(scheduler::CallCancelled{scheduler::CallerId(1), call.key}));
      TickUntil(loop, inbox, [&] { return outbox_.replies.size() == request; });
    }
    loop.CheckInvariants();
    EXPECT_EQ(loop.planner().status().free_pages, 32);
    const scheduler::PrefillCall last = decode_.Call(6, Prompt(150, 6));
    ASSERT_TRUE(
        inbox.TryPush(scheduler::CallReceived{scheduler::CallerId(1), last, clock_->Now()}));
    TickUntil(loop, inbox, [&] { return outbox_.replies.size() == 6; });
    EXPECT_TRUE(outbox_.replies[5].status.ok()) << outbox_.replies[5].status;
  });
}

TEST_P(PrefillGroupTest, FollowersNoticeThatTheLeaderIsGone) {
  breaks_ = true;
  Lead([](PrefillLoop& loop, PrefillInbox&) { loop.Tick(); });
}

INSTANTIATE_TEST_SUITE_P(Ranks, PrefillGroupTest, testing::Values(2, 3, 4));

TEST(GroupMessagesTest, BytesThatAreNoCommandAreRefused) {
  GroupCommand command;
  scheduler::OpenHandoff open{{RequestId(7), 1}, {}};
  open.landing.transport_address = "somewhere";
  open.landing.pages = {PageId(3), PageId(4)};
  command.handoffs.emplace_back(open);
  command.handoffs.emplace_back(scheduler::AbortHandoff{{RequestId(8), 0}});
  const std::vector<TokenId> tokens = {5, 6, 7};
  const std::vector<PageId> pages = {PageId(1)};
  scheduler::RunPrefillPass pass;
  pass.plan.total_rows = 2;
  pass.plan.slices.push_back({.sequence = tokens,
                              .prompt_tokens = 3,
                              .first_position = 1,
                              .row_count = 2,
                              .pages = pages});
  pass.handoffs.push_back({.key = open.key, .first_page = 1, .pages = pages, .token_count = 2});
  command.pass = &pass;
  std::vector<std::byte> bytes = EncodeCommand(command);

  const auto decoded = DecodeCommand(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_EQ(decoded->handoffs.size(), 2u);
  EXPECT_EQ(std::get<scheduler::OpenHandoff>(decoded->handoffs[0]).landing.pages.size(), 2u);
  ASSERT_TRUE(decoded->pass.has_value());
  const scheduler::SequenceSlice& slice = decoded->pass->pass.plan.slices.at(0);
  EXPECT_EQ(std::vector<TokenId>(slice.sequence.begin(), slice.sequence.end()),
            (std::vector<TokenId>{0, 6, 7}));

  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(DecodeCommand(std::span(bytes).first(size)).ok()) << size;
  }
  bytes[0] = std::byte{77};
  EXPECT_FALSE(DecodeCommand(bytes).ok());
  Rng rng(1);
  for (int i = 0; i < 2000; ++i) {  // any bytes: an error or a command, never a crash
    std::vector<std::byte> noise(rng.Below(120));
    for (std::byte& b : noise) b = static_cast<std::byte>(rng.Below(i % 2 == 0 ? 256 : 5));
    DecodeCommand(noise).status().IgnoreError();
    DecodeResults(noise).status().IgnoreError();
  }
}

}  // namespace
}  // namespace baton::prefill_worker
