#ifndef BATON_MODEL_EXPERT_EXCHANGE_H_
#define BATON_MODEL_EXPERT_EXCHANGE_H_

// Rows travel to the ranks that hold the experts they chose, and the experts' outputs travel back:
// dispatch and combine of an expert-parallel group. A row goes to a rank once, however many of its
// experts are there; each expert's output comes back by itself, so that the sum over experts is
// taken at home in the order of the experts, wherever they were. Every rank of the group calls
// BeginDispatch, EndDispatch, BeginReturn and EndReturn once for each MoE layer, also with no rows.
// With a CallQueue the rows travel between Begin and End, beside what the caller computes; without
// one, within Begin. Host memory only.

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"
#include "model/call_queue.h"
#include "model/rank_group.h"

namespace baton::model {

class ExpertExchange {
 public:
  struct Shape {
    int64_t hidden = 0;   // H
    int64_t inner = 0;    // width of an expert
    int32_t choices = 0;  // k, experts of a row
    kernels::DType act = kernels::DType::kBF16;
  };

  // FAILED_PRECONDITION for a device whose memory the host cannot read. `group` is not solo; it and
  // the device outlive the exchange.
  static absl::StatusOr<std::unique_ptr<ExpertExchange>> Create(kernels::Device& device,
                                                                const RankGroup& group,
                                                                const Shape& shape);

  // Of the dispatches that follow: where their collectives run; null: where they are called. The
  // queue outlives them. Exchanges of one group that take turns share one queue, since all ranks
  // make the collective calls of all exchanges in the same order.
  void UseQueue(CallQueue* queue) { queue_ = queue; }

  // Sends the rows of x, act [T, H], to the ranks of `physical`, I32 [T, k]: each entry r *
  // slots_per_rank + s for slot s of rank r. Both may be reused on return. Errors, of the End calls
  // too, are the collectives'.
  absl::Status BeginDispatch(const kernels::TensorView& x, const kernels::TensorView& physical,
                             int32_t slots_per_rank);
  absl::Status EndDispatch();

  // What came here, from EndDispatch to the next BeginDispatch. R rows from all ranks, P pairs of a
  // row and one of this rank's slots.
  int64_t rows() const { return rows_; }
  int64_t pairs() const { return pairs_; }
  kernels::TensorView x() const;      // act [R, H] rows
  kernels::TensorView slots() const;  // I32 [R, k]: slot of each choice; slots_per_rank: elsewhere
  // Room for MoePermute's outputs over slots() and for the experts'.
  kernels::TensorView offsets() const;     // I32 [slots_per_rank + 1]
  kernels::TensorView row_tokens() const;  // I32 [R * k]
  kernels::TensorView pair_rows() const;   // I32 [R, k]
  kernels::TensorView inner() const;       // act [P, inner]
  kernels::TensorView outputs() const;     // act [P, H]

  // Sends outputs(), in the rows that pair_rows() says, home.
  absl::Status BeginReturn();
  absl::Status EndReturn();

  // After EndReturn: act [T * k, H], and for each choice of each row of BeginDispatch's x the row
  // of its output, I32 [T, k].
  kernels::TensorView home_outputs() const;
  kernels::TensorView home_rows() const;

  // Bytes that this rank sent to others so far.
  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  // Device memory that grows to the largest size asked for; its contents are lost then.
  class Buffer {
   public:
    absl::Status Reserve(kernels::Device& device, size_t bytes);
    uint8_t* data() const { return static_cast<uint8_t*>(buffer_.data()); }
    size_t bytes() const { return buffer_.bytes(); }

   private:
    kernels::DeviceBuffer buffer_;
  };

  ExpertExchange(kernels::Device& device, const RankGroup& group, const Shape& shape);

  absl::Status Plan(const kernels::TensorView& physical);
  absl::Status PackRecords(const kernels::TensorView& x);
  absl::Status Quantize(const kernels::TensorView& x);
  // Runs `call` in the queue if there is one, and Finish waits for it.
  absl::Status Start(CallQueue::Call call);
  absl::Status Finish();
  absl::Status SendRows();
  absl::Status ExchangeCounts();
  absl::Status ReserveForReceived();
  void ReadRecords();
  absl::Status CheckPairs() const;
  absl::Status AllToAll(const Buffer& from, const Buffer& to);
  kernels::TensorView View(const Buffer& buffer, kernels::DType dtype,
                           std::initializer_list<int64_t> shape) const;

  kernels::Device& device_;
  const RankGroup group_;
  const Shape shape_;
  const int64_t row_bytes_;     // of H activations
  const int64_t sent_bytes_;    // of a row in the format in which it travels
  const int64_t record_bytes_;  // the same with slots and padding
  CallQueue* queue_ = nullptr;
  CallQueue::Ticket ticket_ = 0;  // of the call under way
  int32_t slots_per_rank_ = 0;

  // What goes out: for each rank in turn, the rows that it gets and where its slots for them are.
  struct Counts {
    int32_t rows = 0;
    int32_t pairs = 0;
  };
  std::vector<int32_t> sent_rows_;   // row of x, rank after rank
  std::vector<int32_t> sent_slots_;  // [sent rows, k]: slot, or slots_per_rank for elsewhere
  std::vector<Counts> sent_;         // [ranks]
  std::vector<Counts> next_;         // [ranks]: of Plan, where the next row and pair go
  std::vector<int64_t> last_row_;    // [ranks]: of Plan, the row that it last met there
  std::vector<Counts> all_counts_;   // [ranks from, ranks to]
  std::vector<Counts> received_;     // [ranks]
  std::vector<size_t> send_bytes_, receive_bytes_;  // [ranks]

  int64_t home_row_count_ = 0;  // T
  int64_t rows_ = 0;
  int64_t pairs_ = 0;
  Buffer codes_, scales_, send_, records_, x_, slots_, offsets_, row_tokens_, pair_rows_, inner_,
      outputs_, returned_, home_outputs_, home_rows_;
  uint64_t bytes_sent_ = 0;
};

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_EXCHANGE_H_
