#include "transport/inproc/inproc_exchange.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

// What a rank sends in one call is copied up to this size; beyond it the rank waits for its peers
// to take it.
constexpr size_t kCopiedBytes = 8192;
constexpr Duration kSpin = Duration::Micros(50);  // letting others run; then the thread sleeps
constexpr Duration kLongestSleep = Duration::Millis(100);

struct Post {
  CallShape shape;
  std::vector<SendSpan> send;     // by receiver
  std::vector<std::byte> copies;  // where `send` points, if it was copied
  bool is_copied = false;
};

struct Slot {
  Slot(int rank, const std::vector<std::string>& names)
      : state(rank, names),
        posts{{.send = std::vector<SendSpan>(names.size())},
              {.send = std::vector<SendSpan>(names.size())}} {}

  GroupState state;
  Post posts[2];                       // of odd and even calls
  std::atomic<uint64_t> posted{0};     // the last call
  std::atomic<bool> is_inside{false};  // a call
  std::atomic<int> untaken{0};         // peers that have still to take what was not copied
  std::atomic<int> readers{0};         // peers that copy from this rank's buffers now
  std::atomic<bool> sleeping{false};
  std::mutex mutex;  // of `bell`
  std::condition_variable bell;
};

struct Group {
  std::vector<int> present;
  std::shared_ptr<Clock> clock;
  std::deque<Slot> slots;  // by rank

  void WakeUp(Slot* slot) {
    if (!slot->sleeping.load()) return;
    { std::lock_guard<std::mutex> lock(slot->mutex); }
    slot->bell.notify_one();
  }
  void Break(const GroupFailure& failure, uint64_t last_good_call) {
    bool is_news = false;
    for (const int rank : present) {
      is_news = slots[static_cast<size_t>(rank)].state.Break(failure, last_good_call) || is_news;
      WakeUp(&slots[static_cast<size_t>(rank)]);
    }
    if (!is_news) return;
    // Lost ranks have just been told, too.
    for (const int rank : present) {
      for (const int lost : failure.lost_ranks) slots[static_cast<size_t>(rank)].state.Gone(lost);
    }
  }
};

class InprocExchange final : public Exchange {
 public:
  InprocExchange(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), me_(group_->slots[static_cast<size_t>(rank)]) {
    for (const int peer : group_->present) {
      if (peer != rank) peers_.push_back(peer);
    }
    // Each starts with its successor, so that not all read from the same rank at once.
    std::rotate(peers_.begin(), std::upper_bound(peers_.begin(), peers_.end(), rank), peers_.end());
  }

  ~InprocExchange() override {
    me_.state.SetWakeup(nullptr);
    if (peers_.empty()) return;
    const int rank = me_.state.rank();
    if (moves_on_) {
      group_->Break({MovedOnError(me_.state), {}}, me_.state.entered());
      return;
    }
    for (const int peer : peers_) At(peer).state.Gone(rank);
    group_->Break({LeftError(me_.state), {rank}}, me_.state.entered());
  }

  GroupState& state() override { return me_.state; }

  std::vector<int> GoneRanks() override { return me_.state.gone(); }
  void MoveOn() override { moves_on_ = true; }

  void Abort(GroupFailure failure, uint64_t last_good_call) override {
    group_->Break(failure, last_good_call);
  }

  void Ring() override {
    for (const int peer : peers_) At(peer).state.PeerAnnounced(me_.state.entered() + 1);
  }

  absl::Status Run(const CallShape& shape, std::span<const SendSpan> send,
                   std::span<const RecvSpan> recv, const CallLimit& limit) override {
    const uint64_t call = me_.state.Enter();
    if (me_.state.BrokenFor(call)) return me_.state.failure().status;
    Publish(call, shape, send);
    absl::Status status = TakeAll(call, shape, recv, limit);
    if (status.ok()) status = AwaitTaken(call, shape, limit);
    me_.is_inside = false;
    if (!status.ok()) AwaitReaders();
    return status;
  }

 private:
  Slot& At(int rank) { return group_->slots[static_cast<size_t>(rank)]; }

  void Publish(uint64_t call, const CallShape& shape, std::span<const SendSpan> send) {
    Post& post = me_.posts[call % 2];
    post.shape = shape;
    size_t bytes = 0;
    const SendSpan* last = nullptr;
    for (const int peer : peers_) {
      const SendSpan& span = send[static_cast<size_t>(peer)];
      if (!IsSame(last, span)) bytes += span.size();
      last = &span;
    }
    post.is_copied = bytes <= kCopiedBytes;
    if (post.is_copied) {
      Copy(send, bytes, &post);
    } else {
      std::copy(send.begin(), send.end(), post.send.begin());
      me_.untaken = static_cast<int>(peers_.size());
    }
    me_.is_inside = true;
    me_.posted = call;
    for (const int peer : peers_) group_->WakeUp(&At(peer));
  }

  static bool IsSame(const SendSpan* last, const SendSpan& span) {
    return last != nullptr && last->data() == span.data() && last->size() == span.size();
  }

  // The same bytes for one peer after the other are copied once.
  void Copy(std::span<const SendSpan> send, size_t bytes, Post* post) {
    post->copies.resize(std::max(post->copies.size(), bytes));
    size_t at = 0;
    const SendSpan* last = nullptr;
    for (const int peer : peers_) {
      const SendSpan& span = send[static_cast<size_t>(peer)];
      if (!IsSame(last, span)) {
        if (!span.empty()) std::memcpy(post->copies.data() + at, span.data(), span.size());
        at += span.size();
      }
      post->send[static_cast<size_t>(peer)] =
          SendSpan(post->copies).subspan(at - span.size(), span.size());
      last = &span;
    }
  }

  absl::Status TakeAll(uint64_t call, const CallShape& shape, std::span<const RecvSpan> recv,
                       const CallLimit& limit) {
    for (const int peer : peers_) {
      Slot& from = At(peer);
      if (!Await(call, limit, [&] { return from.posted.load() >= call; })) {
        return Silent(call, shape, limit);
      }
      BATON_RETURN_IF_ERROR(Take(call, shape, peer, recv[static_cast<size_t>(peer)]));
    }
    return absl::OkStatus();
  }

  absl::Status Take(uint64_t call, const CallShape& shape, int peer, RecvSpan into) {
    Slot& from = At(peer);
    from.readers.fetch_add(1);
    if (from.state.BrokenFor(call)) {
      from.readers.fetch_sub(1);
      me_.state.Break(from.state.failure(), call - 1);  // where the news is still on its way
      return me_.state.failure().status;
    }
    const Post& post = from.posts[call % 2];
    const SendSpan bytes = post.send[static_cast<size_t>(me_.state.rank())];
    const CallShape theirs = post.shape;
    const bool fits = theirs == shape && bytes.size() == into.size();
    if (fits && !into.empty()) std::memcpy(into.data(), bytes.data(), into.size());
    const bool is_last = fits && !post.is_copied && from.untaken.fetch_sub(1) == 1;
    const size_t sent_bytes = bytes.size();
    from.readers.fetch_sub(1);
    if (is_last) group_->WakeUp(&from);
    if (fits) return absl::OkStatus();
    group_->Break(theirs == shape
                      ? DifferentSizes(me_.state, call, shape, peer, sent_bytes, into.size())
                      : DifferentCalls(me_.state, call, shape, peer, theirs),
                  0);
    return me_.state.failure().status;
  }

  absl::Status AwaitTaken(uint64_t call, const CallShape& shape, const CallLimit& limit) {
    if (me_.posts[call % 2].is_copied) return absl::OkStatus();
    if (Await(call, limit, [this] { return me_.untaken.load() == 0; })) return absl::OkStatus();
    return Silent(call, shape, limit);
  }

  // False when the group broke or the deadline has passed.
  template <typename Ready>
  bool Await(uint64_t call, const CallLimit& limit, Ready ready) {
    if (ready()) return true;
    const Tick spin_end = group_->clock->Now() + kSpin;
    while (group_->clock->Now() < spin_end) {
      sched_yield();
      if (ready()) return true;
      if (me_.state.BrokenFor(call)) return false;
    }
    std::unique_lock<std::mutex> lock(me_.mutex);
    me_.sleeping = true;
    bool is_ready = ready();
    while (!is_ready && !me_.state.BrokenFor(call)) {
      const Duration left = limit.deadline - group_->clock->Now();
      if (left <= Duration::Nanos(0)) break;
      me_.bell.wait_for(lock, std::chrono::nanoseconds(std::min(left, kLongestSleep).nanos()));
      is_ready = ready();
    }
    me_.sleeping = false;
    return is_ready;
  }

  // Breaks the group, unless it already is: for those who are in no call, or else for those who
  // are behind.
  absl::Status Silent(uint64_t call, const CallShape& shape, const CallLimit& limit) {
    std::vector<int> outside, behind;
    for (const int peer : peers_) {
      if (At(peer).posted.load() >= call) continue;
      behind.push_back(peer);
      if (!At(peer).is_inside.load()) outside.push_back(peer);
    }
    if (!me_.state.BrokenFor(call)) {
      std::vector<int>& suspects = !outside.empty() ? outside : !behind.empty() ? behind : peers_;
      std::sort(suspects.begin(), suspects.end());
      group_->Break(SilentRanks(me_.state, shape, call, suspects, limit), 0);
    }
    return me_.state.failure().status;
  }

  // Bounded by the copies that are under way.
  void AwaitReaders() {
    while (me_.readers.load() != 0) sched_yield();
  }

  const std::shared_ptr<Group> group_;
  Slot& me_;
  std::vector<int> peers_;
  bool moves_on_ = false;
};

}  // namespace

std::vector<std::unique_ptr<Exchange>> MakeInprocExchanges(const std::vector<int>& present,
                                                           std::vector<std::string> names,
                                                           std::shared_ptr<Clock> clock) {
  auto group = std::make_shared<Group>();
  group->present = present;
  group->clock = std::move(clock);
  for (size_t rank = 0; rank < names.size(); ++rank) {
    group->slots.emplace_back(static_cast<int>(rank), names);
  }
  std::vector<std::unique_ptr<Exchange>> out(names.size());
  for (const int rank : present) {
    out[static_cast<size_t>(rank)] = std::make_unique<InprocExchange>(group, rank);
  }
  return out;
}

}  // namespace baton::transport
