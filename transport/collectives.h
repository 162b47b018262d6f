#ifndef BATON_TRANSPORT_COLLECTIVES_H_
#define BATON_TRANSPORT_COLLECTIVES_H_

// What the ranks of one group compute together: the tensor-parallel ranks of a prefill worker, the
// expert-parallel ranks of a decode worker. A Collectives is one rank's handle on its group; it is
// made by a Rendezvous (transport/group/group.h), or by MakeSoloCollectives for a group of one.
//
// Calls. All ranks make the same calls in the same order with sizes that agree; a call returns on a
// rank when that rank's results stand in its buffers and its inputs may be reused. It does not mean
// that other ranks have returned. Buffers may not overlap, except that AllReduceSum and Broadcast
// work in place. One thread per rank makes the calls (the loop's); what is marked "any thread" may
// be called beside them.
//
// Numerics. AllReduceSum adds in rank order 0, 1, ..., in float32, and rounds once to the element
// type: every rank gets the same bits, run after run, whatever the implementation's algorithm, so
// that the sum of a row does not depend on the other rows.
//
// Failure. Every call has a deadline and never hangs. DEADLINE_EXCEEDED: some rank did not come in
// time; UNAVAILABLE: some rank is gone or has left; INVALID_ARGUMENT: ranks made different calls or
// their sizes disagree; or whatever status Abort was given. The message names the ranks, and
// lost_ranks() lists those that are dead or silent. After a failure the output buffers are
// undefined and the group is broken for all its ranks: who is inside a call is told and returns
// without waiting for its own deadline, and every later call returns the same status at once. A
// broken group is not mended: the ranks that are left form a new one, under a new generation.
//
// Ranks that a group was formed without keep their numbers: world_size() and the sizes of buffers
// stay the same, what an absent rank would give is zero bytes (AllGather) or left out
// (AllReduceSum), and AllToAllV allows only sizes of zero for it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"

namespace baton::transport {

// How long a rank may stay out of a call before the others give it up.
inline constexpr Duration kDefaultCollectiveTimeout = Duration::Seconds(2);

enum class ReduceType : uint8_t { kF32, kBF16 };

// The calls that move data.
class DataCalls {
 public:
  virtual ~DataCalls() = default;

  // Replaces `data` by the elementwise sum over all ranks. data.size() is a multiple of the element
  // size (4 or 2 bytes), the same on all ranks; zero is fine.
  virtual absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type,
                                    Duration timeout) = 0;

  // `all` gets every rank's `mine`, in rank order: all.size() == world_size * mine.size(), with the
  // same mine.size() on all ranks; zero is fine.
  virtual absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                                 Duration timeout) = 0;

  // `data` of rank `root` replaces the others'. The same size and root on all ranks.
  virtual absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) = 0;

  // Sends to each rank r the next send_bytes[r] bytes of `send`, and puts what rank r sends at the
  // next recv_bytes[r] bytes of `recv`: this rank's recv_bytes[r] is rank r's send_bytes[this
  // rank]. Both have world_size entries that add up to the buffers' sizes; entries may be zero, the
  // one to this rank itself too.
  virtual absl::Status AllToAllV(std::span<const std::byte> send,
                                 std::span<const size_t> send_bytes, std::span<std::byte> recv,
                                 std::span<const size_t> recv_bytes, Duration timeout) = 0;
};

// The same for buffers in the memory of the rank's GPU, in one order with the other calls of the
// group. A call returns when it has its place in the queue of the GPU's work: its results are there
// for what the GPU is given later. What then goes wrong is the error of a later call or of Settle.
class DeviceCalls : public DataCalls {
 public:
  // Waits until the GPU has done what it was given, at most `timeout` for what is under way.
  // Whoever waits for the GPU in another way settles first: other waits have no deadline, and a
  // rank that is lost would hold them for ever. In a broken group calls leave the queue undone.
  virtual absl::Status Settle(Duration timeout) = 0;

  // While `trusted`, the ranks' hosts do not agree on each call and its sizes: all know them from
  // what they agreed on before. Calls that differ all the same end by the deadline. The same on all
  // ranks.
  virtual void TrustSizes(bool trusted) = 0;
};

class Collectives : public DataCalls {
 public:
  virtual int world_size() const = 0;  // at least 1
  virtual int rank() const = 0;        // in [0, world_size)

  // Null where the rank has no device with memory of its own. Lives as long as this object; what
  // stands here about calls, threads and failure holds for both together.
  virtual DeviceCalls* ForDevice() { return nullptr; }

  // Returns once every rank has called it.
  virtual absl::Status Barrier(Duration timeout) = 0;

  // Whether `rank` takes part. This rank always does.
  virtual bool is_present(int rank) const = 0;
  // Grows with each group that is formed from these ranks, from 1.
  virtual uint64_t generation() const = 0;

  // OK, or what every later call returns. Learns of a rank's end between calls too. Any thread.
  virtual absl::Status health() const = 0;
  // Once the group is broken: the ranks whose fault it is as far as this one knows (dead, silent,
  // departed, or in another call), ascending; empty after Abort. Any thread.
  virtual std::vector<int> lost_ranks() const = 0;
  // Ranks that will not go on from this group, ascending: they have ended or left for good, or they
  // have been told that they are taken for lost, and will find it before they do anything else.
  // This rank itself where others have told it so, and where it cannot find out. Not a rank that is
  // silent and cannot be told. Loop's thread, between calls.
  virtual std::vector<int> gone_ranks() const = 0;
  // This rank goes on in a newer group of these ranks: when it leaves this one, nobody takes it for
  // lost or gone. Loop's thread, between calls.
  virtual void MoveOn() = 0;
  // Breaks the group with `why`, which is not OK; the others get it too, with this rank's name in
  // front. For a rank that cannot go on. Without effect where the group is already broken. Any
  // thread.
  virtual void Abort(const absl::Status& why) = 0;

  // An idle group sleeps outside of calls, each rank in its own loop. A rank that has something to
  // do calls Ring and then makes the next call; the others' wakeup is called (from any thread, it
  // must only mark that the loop should look), and PeerWaits is true there until they have entered
  // that call. The wakeup is also called when the group breaks.
  virtual void SetWakeup(std::function<void()> wakeup) = 0;
  virtual void Ring() = 0;
  virtual bool PeerWaits() const = 0;
};

// The group of one rank: copies, and sums of one term. Never times out; only Abort breaks it.
std::unique_ptr<Collectives> MakeSoloCollectives();

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_COLLECTIVES_H_
