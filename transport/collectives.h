#ifndef BATON_TRANSPORT_COLLECTIVES_H_
#define BATON_TRANSPORT_COLLECTIVES_H_

// What the ranks of one group compute together: the tensor-parallel ranks of a prefill worker, the
// expert-parallel ranks of a decode worker. A Collectives is one rank's handle on its group.
//
// Calls. All ranks make the same calls in the same order with sizes that agree; a call returns on a
// rank when that rank's results stand in its buffers and its inputs may be reused. It does not mean
// that other ranks have returned. Buffers may not overlap, except that AllReduceSum and Broadcast
// work in place. One thread per rank calls (the loop's).
//
// Numerics. AllReduceSum adds in rank order 0, 1, ..., in float32, and rounds once to the element
// type: every rank gets the same bits, run after run, whatever the implementation's algorithm, so
// that the sum of a row does not depend on the other rows.
//
// Failure. Every call has a deadline. DEADLINE_EXCEEDED: some rank did not come in time;
// UNAVAILABLE: some rank is gone; INVALID_ARGUMENT: sizes disagree (where it can be told). After
// any of these the output buffers are undefined and the group is broken: every later call on every
// rank fails with FAILED_PRECONDITION, within its deadline, until the group is built anew. A call
// never hangs.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "base/clock.h"

namespace baton::transport {

enum class ReduceType : uint8_t { kF32, kBF16 };

class Collectives {
 public:
  virtual ~Collectives() = default;

  virtual int world_size() const = 0;  // at least 1
  virtual int rank() const = 0;        // in [0, world_size)

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

  // Returns once every rank has called it.
  virtual absl::Status Barrier(Duration timeout) = 0;
};

// The group of one rank: copies, and sums of one term. Never times out.
std::unique_ptr<Collectives> MakeSoloCollectives();

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_COLLECTIVES_H_
