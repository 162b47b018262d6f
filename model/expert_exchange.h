#ifndef BATON_MODEL_EXPERT_EXCHANGE_H_
#define BATON_MODEL_EXPERT_EXCHANGE_H_

// Rows travel to the ranks that hold the experts they chose, and the experts' outputs travel back:
// dispatch and combine of an expert-parallel group. A row goes to a rank once, however many of its
// experts are there; each expert's output comes back by itself, so that the sum over experts is
// taken at home in the order of the experts, wherever they were. Every rank of the group calls
// BeginDispatch, EndDispatch, BeginReturn and EndReturn once for each MoE layer, also with no rows.
// With a CallQueue the rows travel between Begin and End, beside what the caller computes; without
// one, within Begin.
//
// All work on rows is ops of the device. Messages are of one of two kinds:
//   counted  as long as needed. The ranks' hosts tell each other how many rows and outputs go
//   where,
//            so on a GPU each layer waits for the gate.
//   fixed    a block of a fixed length for each rank that is present. No host learns any number: a
//            pass is one queue of the GPU's work. What does not fit is left out; Room says how much
//            there was of it.

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"
#include "model/call_queue.h"
#include "model/rank_group.h"
#include "model/recorded_passes.h"

namespace baton::model {

class ExpertExchange {
 public:
  struct Shape {
    int64_t hidden = 0;   // H
    int64_t inner = 0;    // width of an expert
    int32_t choices = 0;  // k, experts of a row
    kernels::DType act = kernels::DType::kBF16;
    // Experts read E4M3 (linear_input.h): rows travel as Dispatch::kFp8, whatever the group says,
    // and are read as they come.
    bool fp8 = false;
  };
  // Of the blocks of fixed messages, the same on all ranks; rows 0: messages are counted.
  struct Room {
    int32_t rows = 0;
    int32_t pairs = 0;
    kernels::TensorView most_pairs;  // I32 [1]: raised to the most pairs for one rank
  };

  // `group` is not solo; it and the device outlive the exchange.
  ExpertExchange(kernels::Device& device, const RankGroup& group, const Shape& shape);

  // Of the dispatches that follow: where their collectives run; null: where they are called. The
  // queue outlives them. Exchanges of one group that take turns share one queue, since all ranks
  // make the collective calls of all exchanges in the same order. Host memory only.
  void UseQueue(CallQueue* queue) { queue_ = queue; }
  void UseRoom(const Room& room) { room_ = room; }
  // Of fixed messages: who records the ops of the passes that follow; null: nobody.
  void UseRecorder(RecordedPasses* recorder) { recorder_ = recorder; }
  // How often buffers have moved. What was recorded before may use them.
  uint64_t moves() const { return moves_; }

  // Whether Shape says so.
  bool fp8() const { return shape_.fp8; }

  // Sends the rows of x, act [T, H], or with fp8() E4M3 with their `scales`, to the ranks of
  // `physical`, I32 [T, k]: each entry r * slots_per_rank + s for slot s of rank r. Both may be
  // reused by what the device is given later. Errors, of the End calls too, are the collectives'.
  absl::Status BeginDispatch(const kernels::TensorView& x, const kernels::TensorView& scales,
                             const kernels::TensorView& physical, int32_t slots_per_rank);
  absl::Status EndDispatch();

  // What came here, from EndDispatch to the next BeginDispatch: R rows from all ranks, and room for
  // P pairs of a row and one of this rank's slots (counted: just as many).
  int64_t rows() const { return rows_; }
  int64_t pairs() const { return pairs_; }
  kernels::TensorView x() const;         // act, with fp8() E4M3, [R, H] rows
  kernels::TensorView x_scales() const;  // with fp8() F32 [R, ceil(H / 128)] rows, else absent
  kernels::TensorView slots() const;  // I32 [R, k]: slot of each choice; slots_per_rank: elsewhere
  // Room for MoePermute's outputs over slots() and for the experts'.
  kernels::TensorView offsets() const;     // I32 [slots_per_rank + 1]
  kernels::TensorView row_tokens() const;  // I32 [P]
  kernels::TensorView pair_rows() const;   // I32 [R, k]
  kernels::TensorView inner() const;       // act [P, inner]
  kernels::TensorView outputs() const;     // act [P, H]
  // With fp8() room for inner() in E4M3, and how many rows of it there are, from MoePermute on.
  kernels::TensorView inner_codes() const;   // F8E4M3 [P, inner]
  kernels::TensorView inner_scales() const;  // F32 [P, ceil(inner / 128)]
  kernels::TensorView pair_count() const;    // I32 [1]

  // Sends outputs(), in the rows that pair_rows() says, home.
  absl::Status BeginReturn();
  absl::Status EndReturn();

  // After EndReturn: act [rows, H], and for each choice of each row of BeginDispatch's x the row of
  // its output, I32 [T, k]; -1: there was no room for it.
  kernels::TensorView home_outputs() const;
  kernels::TensorView home_rows() const;

  // Bytes that this rank sent to others so far.
  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  // Device memory that grows to the largest size asked for; its contents are lost then.
  class Buffer {
   public:
    uint8_t* data() const { return static_cast<uint8_t*>(buffer_.data()); }
    size_t bytes() const { return buffer_.bytes(); }

   private:
    friend class ExpertExchange;
    kernels::DeviceBuffer buffer_;
  };

  absl::Status Reserve(Buffer& buffer, int64_t bytes);
  // The host is about to wait for the device.
  absl::Status MayWait() const;
  absl::Status ReserveForSent();
  absl::Status ReserveForReceived();
  absl::Status NumberBlocks();
  absl::Status Pack(const kernels::TensorView& x, const kernels::TensorView& scales,
                    const kernels::DispatchPlanArgs& plan);
  // Runs `call` in the queue if there is one, and Finish waits for it.
  absl::Status Start(CallQueue::Call call);
  absl::Status Finish();
  absl::Status SendRows();
  absl::Status ReadCounts();
  absl::Status ExchangeCounts();
  void TakeFixedCounts();
  absl::Status CheckPairs() const;
  // Both hold units of so many bytes.
  absl::Status AllToAll(const Buffer& from, const Buffer& to, int64_t unit);
  bool fixed() const { return room_.rows > 0; }
  kernels::TensorView View(const Buffer& buffer, kernels::DType dtype,
                           std::initializer_list<int64_t> shape) const;

  kernels::Device& device_;
  const RankGroup group_;
  const Shape shape_;
  const kernels::RecordLayout layout_;
  const int64_t row_bytes_;  // of H activations
  CallQueue* queue_ = nullptr;
  CallQueue::Ticket ticket_ = 0;  // of the call under way
  RecordedPasses* recorder_ = nullptr;
  uint64_t moves_ = 0;
  int32_t slots_per_rank_ = 0;
  Room room_;

  // Rows and outputs between this rank and others, by rank; of fixed messages the room for them.
  struct Counts {
    int32_t rows = 0;
    int32_t pairs = 0;
  };
  std::vector<Counts> sent_;                        // [ranks]
  std::vector<Counts> all_counts_;                  // [ranks from, ranks to]
  std::vector<Counts> received_;                    // [ranks]
  std::vector<int32_t> block_of_;                   // [ranks]: what blocks_ holds
  std::vector<size_t> send_bytes_, receive_bytes_;  // [ranks]

  int64_t home_row_count_ = 0;  // T
  int64_t rows_ = 0;
  int64_t pairs_ = 0;
  Buffer blocks_, counts_, sent_records_, home_rows_, codes_, scales_, send_, records_, x_, slots_,
      offsets_, row_tokens_, pair_rows_, inner_, inner_codes_, inner_scales_, outputs_,
      return_index_, returned_, home_outputs_;
  uint64_t bytes_sent_ = 0;
};

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_EXCHANGE_H_
