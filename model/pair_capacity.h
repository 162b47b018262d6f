#ifndef BATON_MODEL_PAIR_CAPACITY_H_
#define BATON_MODEL_PAIR_CAPACITY_H_

// How long the blocks of an expert-parallel group's messages are where the hosts do not wait for
// counts (ExpertExchange): room for some rows from each rank to each other, and for some pairs of a
// row and an expert on the way home. Rows are known to all before a pass; how many pairs one rank
// gets of another is not, so a pass may find too little room for them and is run again with more.
//
// Pure. Ranks that have seen the same passes have the same capacities, which they must: all begin
// anew when the group is formed anew.

#include <algorithm>
#include <cstdint>

namespace baton::model {

class PairCapacity {
 public:
  // k choices a row, spread over `ranks`.
  PairCapacity(int32_t choices, int32_t ranks) : choices_(choices), ranks_(ranks) {}

  // Of a rank's rows in a pass in which none has more than `most_rows`: steps, so that few sizes
  // occur.
  static int32_t RowsFor(int32_t most_rows) {
    if (most_rows > 16) return (most_rows + 15) / 16 * 16;
    int32_t rows = 1;
    while (rows < most_rows) rows *= 2;
    return rows;
  }
  // Of pairs between two ranks with that room for rows: some times what even loads give, and a
  // little more, since small numbers scatter.
  int32_t PairsFor(int32_t rows) const {
    const int64_t all = int64_t{rows} * choices_;
    return static_cast<int32_t>(std::min(all, (all * factor_ + ranks_ - 1) / ranks_ + kMore));
  }

  // After a pass with room for `rows`: the most pairs that any rank had for one other. True when
  // there was room; else the pass has to be run again, with more.
  bool Fits(int32_t rows, int32_t most_pairs) {
    if (most_pairs <= PairsFor(rows)) {
      Calm(rows, most_pairs);
      return true;
    }
    while (PairsFor(rows) < most_pairs) factor_ *= 2;
    calm_ = 0;
    return false;
  }

 private:
  static constexpr int64_t kLeastFactor = 2;
  static constexpr int64_t kMore = 8;          // pairs
  static constexpr int32_t kCalmPasses = 256;  // until less room is tried

  void Calm(int32_t rows, int32_t most_pairs) {
    calm_ = 2 * most_pairs <= PairsFor(rows) ? calm_ + 1 : 0;
    if (calm_ < kCalmPasses || factor_ == kLeastFactor) return;
    factor_ /= 2;
    calm_ = 0;
  }

  int32_t choices_;
  int32_t ranks_;
  int64_t factor_ = kLeastFactor;
  int32_t calm_ = 0;  // passes in a row that needed half of the room or less
};

}  // namespace baton::model

#endif  // BATON_MODEL_PAIR_CAPACITY_H_
