// Both worker loops on threads of their own and routers on theirs, as in production but for gRPC:
// what crosses threads is the inboxes, the deferred inboxes before them, the wake-ups and the
// transport. Run it under ThreadSanitizer.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/loop_thread.h"
#include "base/random.h"
#include "base/thread.h"
#include "decode_worker/loop.h"
#include "gtest/gtest.h"
#include "prefill_worker/loop.h"
#include "tests/sim/stub_runner.h"
#include "transport/inproc/inproc_transport.h"
#include "wire/deferred_inbox.h"

namespace baton::decode_worker {
namespace {

using scheduler::DecodeEvent;
using scheduler::EndKind;
using scheduler::PrefillEvent;

constexpr size_t kInboxCapacity = 4;  // small, so that producers find it full
constexpr int kRouters = 4;
constexpr int kRequestsOfARouter = 40;
// Room for all requests at once, so that none is refused: a router without credits may always send
// one start, and these routers do not count what prefill takes.
constexpr int32_t kAllRequests = kRouters * kRequestsOfARouter;
constexpr int32_t kPages = 1024;
constexpr scheduler::CallerId kDecodeCaller(1);
// Far more than anything here takes: a bound that is met means a lost event.
constexpr std::chrono::seconds kLimit(120);
constexpr Duration kForever = Duration::Seconds(100'000);  // an idle loop ticks only when woken

// What one router has of one request.
struct Received {
  std::vector<TokenId> tokens;
  int ends = 0;
  int releases = 0;
  EndKind kind = EndKind::kFailed;
};

// A router as a decode rank sees it: starts requests on its own thread while it has credits,
// cancels every third, and keeps what comes back.
class TestRouter {
 public:
  TestRouter(RouterId id, wire::DeferredInbox<DecodeEvent>& inbox, Clock& clock)
      : id_(id), inbox_(inbox), clock_(clock) {}

  void Run() {
    inbox_.Push(scheduler::RouterJoined{id_});
    for (int i = 0; i < kRequestsOfARouter; ++i) {
      if (!WaitFor([&] { return started_ < credits_; })) return;
      const scheduler::StartRequest request = Request(i);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        ++started_;
      }
      Push(scheduler::StartReceived{id_, request, clock_.Now()});
      if (i % 3 == 0) Push(scheduler::CancelReceived{id_, {request.key}});
    }
    WaitFor([&] { return released_ == kRequestsOfARouter; });
  }

  // On the decode loop's thread.
  void OnUpdate(const scheduler::DecodeUpdate& update) {
    std::lock_guard<std::mutex> lock(mutex_);
    credits_ = update.status.credits_granted;
    for (const scheduler::TokenChunk& chunk : update.chunks) {
      Received& received = received_[chunk.key];
      EXPECT_EQ(chunk.first_index, static_cast<int32_t>(received.tokens.size()));
      for (const scheduler::SampledToken& token : chunk.tokens) {
        received.tokens.push_back(token.token);
      }
    }
    for (const scheduler::RequestEnd& end : update.ends) {
      ++received_[end.key].ends;
      received_[end.key].kind = end.kind;
    }
    for (const RequestKey& key : update.released) ++received_[key].releases;
    released_ += static_cast<int>(update.released.size());
    changed_.notify_all();
  }

  // After Run: each request was answered once, with the tokens that it has to have.
  void Check() {
    std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_EQ(received_.size(), static_cast<size_t>(kRequestsOfARouter));
    for (int i = 0; i < kRequestsOfARouter; ++i) {
      SCOPED_TRACE(testing::Message() << "router " << id_ << ", request " << i);
      const scheduler::StartRequest request = Request(i);
      const Received& received = received_[request.key];
      EXPECT_EQ(received.ends, 1);
      EXPECT_EQ(received.releases, 1);
      const std::vector<TokenId> expected =
          sim::OracleTokens(request.prompt, request.sampling, /*model_seed=*/1).tokens;
      if (i % 3 != 0) {
        EXPECT_EQ(received.kind, EndKind::kFinished);
        EXPECT_EQ(received.tokens, expected);
        continue;
      }
      EXPECT_TRUE(received.kind == EndKind::kFinished || received.kind == EndKind::kCancelled);
      ASSERT_LE(received.tokens.size(), expected.size());
      EXPECT_TRUE(std::equal(received.tokens.begin(), received.tokens.end(), expected.begin()));
    }
  }

 private:
  scheduler::StartRequest Request(int i) const {
    const uint64_t number = uint64_t{id_.value()} << 32 | static_cast<uint64_t>(i);
    Rng rng(number);
    scheduler::StartRequest request;
    request.key = {RequestId(number), 0};
    request.prompt.resize(1 + rng.Below(40));
    for (TokenId& id : request.prompt) id = static_cast<TokenId>(1 + rng.Below(49));
    request.sampling.seed = number;
    request.sampling.max_tokens = static_cast<int32_t>(1 + rng.Below(20));
    request.remaining = Duration::Seconds(1000);
    request.prefill_address = "prefill";
    return request;
  }

  // As a stream does: the next message is read when this one was taken.
  void Push(DecodeEvent event) {
    bool taken = false;
    inbox_.Push(std::move(event), [&] {
      std::lock_guard<std::mutex> lock(mutex_);
      taken = true;
      changed_.notify_all();
    });
    BATON_CHECK(WaitFor([&] { return taken; }));
  }

  template <typename Done>
  bool WaitFor(const Done& done) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool came = changed_.wait_for(lock, kLimit, done);
    EXPECT_TRUE(came) << "router " << id_ << " waits in vain";
    return came;
  }

  const RouterId id_;
  wire::DeferredInbox<DecodeEvent>& inbox_;
  Clock& clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t credits_ = 0;  // guarded by mutex_, like the rest
  uint64_t started_ = 0;
  int released_ = 0;
  std::map<RequestKey, Received> received_;
};

// A prefill and a decode worker less their services; each outbox feeds the other's inbox.
struct Workers final : DecodeOutbox,
                       DecodeObserver,
                       prefill_worker::PrefillOutbox,
                       prefill_worker::PrefillObserver {
  Workers() {
    for (uint32_t i = 0; i < kRouters; ++i) {
      routers.push_back(std::make_unique<TestRouter>(RouterId(i), decode_inbox, clock));
    }
    DecodeLoopOptions decode;
    decode.planner.max_batch_rows = kAllRequests;
    decode.planner.max_sequences = kAllRequests;
    decode.planner.max_landings = kAllRequests;
    decode.planner.handoff_timeout = Duration::Seconds(100);
    decode.planner.release_timeout = Duration::Seconds(100);
    decode.planner.eos_token_ids = {sim::kEos};
    auto decode_made = DecodeLoop::Create(decode, clock, decode_runner, *decode_transport,
                                          decode_queue, *this, *this);
    BATON_CHECK(decode_made.ok());
    prefill_worker::PrefillLoopOptions prefill;
    prefill.planner.slots = kAllRequests;
    prefill.planner.chunk_tokens = 32;
    prefill.planner.handoff_timeout = Duration::Seconds(100);
    auto prefill_made = prefill_worker::PrefillLoop::Create(
        prefill, clock, prefill_runner, fabric.NewEndpoint("prefill"), prefill_queue, *this, *this);
    BATON_CHECK(prefill_made.ok());
    decode_thread.Start("decode", std::move(*decode_made));
    prefill_thread.Start("prefill", std::move(*prefill_made));
  }

  // Returns when both loops have ended.
  void Stop() {
    decode_thread.Stop();
    prefill_thread.Stop();
  }

  void Send(scheduler::SendUpdate update) override {
    routers[update.router.value()]->OnUpdate(update.update);
  }
  void Send(scheduler::CallPrefill call) override {
    prefill_inbox.Push(scheduler::CallReceived{kDecodeCaller, std::move(call.call), clock.Now()});
  }
  void Send(scheduler::CancelPrefill cancel) override {
    prefill_inbox.Push(scheduler::CallCancelled{kDecodeCaller, cancel.key});
  }
  void OnStep(const scheduler::DecodeReport& report, const LandingReport&) override {
    decode_inbox.Flush();
    decode_thread.OnStep(report);
  }
  void Send(scheduler::SendReply reply) override {
    decode_inbox.Push(scheduler::PrefillReplied{std::move(reply.reply), clock.Now()});
  }
  void Send(scheduler::PublishStatus) override {}
  void OnStep(const scheduler::PrefillReport& report) override {
    prefill_inbox.Flush();
    prefill_thread.OnStep(report);
  }

  MonotonicClock clock;
  DecodeInbox decode_queue{kInboxCapacity};
  prefill_worker::PrefillInbox prefill_queue{kInboxCapacity};
  wire::DeferredInbox<DecodeEvent> decode_inbox{
      [this](DecodeEvent&& event) { return decode_queue.TryPush(std::move(event)); }};
  wire::DeferredInbox<PrefillEvent> prefill_inbox{
      [this](PrefillEvent&& event) { return prefill_queue.TryPush(std::move(event)); }};
  std::vector<std::unique_ptr<TestRouter>> routers;
  sim::StubRunner decode_runner{{.total_pages = kPages}, nullptr};
  sim::StubRunner prefill_runner{{.total_pages = kPages, .fault_seed = 2}, nullptr};
  transport::InprocFabric fabric;
  // Below the queue, which its wake-ups touch until it is gone.
  std::unique_ptr<transport::KvTransport> decode_transport = fabric.NewEndpoint("decode");
  LoopThread<DecodeLoop, DecodeEvent, scheduler::DecodeReport> decode_thread{decode_queue, clock,
                                                                             kForever};
  LoopThread<prefill_worker::PrefillLoop, PrefillEvent, scheduler::PrefillReport> prefill_thread{
      prefill_queue, clock, kForever};
};

TEST(LoopThreadsTest, EveryMessageOfManyThreadsIsHandledOnce) {
  Workers workers;
  {
    std::vector<Thread> threads;
    for (const auto& router : workers.routers) {
      threads.emplace_back("router", [&router] { router->Run(); });
    }
  }
  workers.Stop();
  for (const auto& router : workers.routers) router->Check();
  const scheduler::DecodeReport decode = workers.decode_thread.last_report();
  EXPECT_EQ(decode.landing + decode.running + decode.releasing, 0);
  EXPECT_EQ(decode.free_pages, kPages);
  EXPECT_EQ(workers.prefill_thread.last_report().free_pages, kPages);
}

TEST(LoopThreadsTest, StopReturnsWhileOthersStillPost) {
  Workers workers;
  std::atomic<bool> enough{false};
  std::atomic<uint64_t> accepted{0};
  {
    std::vector<Thread> producers;
    for (int producer = 0; producer < 3; ++producer) {
      producers.emplace_back("producer", [&] {
        while (!enough.load(std::memory_order_acquire)) {
          // Harmless, and as much work as an event can be.
          if (workers.decode_queue.TryPush(scheduler::RouterLost{RouterId(99)})) ++accepted;
          if (workers.prefill_queue.TryPush(scheduler::CallerLost{kDecodeCaller})) ++accepted;
          std::this_thread::yield();
        }
      });
    }
    while (accepted.load() < 500) std::this_thread::yield();
    workers.Stop();  // returns although both inboxes never run dry
    enough.store(true, std::memory_order_release);
  }
  EXPECT_GE(accepted.load(), 500u);
  EXPECT_LE(workers.decode_queue.size(), kInboxCapacity);
}

TEST(LoopThreadsTest, StopWakesLoopsThatWait) {
  for (int i = 0; i < 20; ++i) {
    Workers workers;
    workers.Stop();
    EXPECT_EQ(workers.decode_queue.size(), 0u);
  }
}

}  // namespace
}  // namespace baton::decode_worker
