#ifndef BATON_KERNELS_CHECK_ARGS_H_
#define BATON_KERNELS_CHECK_ARGS_H_

// Argument checks of the ops: collects the first thing that is wrong, as INVALID_ARGUMENT naming
// the op, the argument, its value and what was expected. Used by ops*.cc alone.

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace baton::kernels {

// Sets of dtypes.
constexpr uint32_t Bit(DType dtype) { return 1u << static_cast<int>(dtype); }
inline constexpr uint32_t kF32Only = Bit(DType::kF32);
inline constexpr uint32_t kI32Only = Bit(DType::kI32);
inline constexpr uint32_t kFloats = Bit(DType::kF32) | Bit(DType::kBF16);
inline constexpr uint32_t kWeights = kFloats | Bit(DType::kF8E4M3);

enum class Layout : uint8_t {
  kDense,  // no gaps at all
  kRows,   // rows of the first dimension may lie apart
};

class ArgCheck {
 public:
  ArgCheck(const char* op, const Device& device) : op_(op), device_(device) {}

  bool ok() const { return status_.ok(); }
  absl::Status status() const { return status_; }

  // Requires dtype in `dtypes` and exactly `shape`; a null pointer is fine only without elements.
  void Tensor(const char* name, const TensorView& view, uint32_t dtypes,
              std::initializer_list<int64_t> shape, Layout layout = Layout::kDense);
  void WeightMatrix(const char* name, const Weight& weight, int64_t rows, int64_t columns);
  // Rows that meet the matrix: of floats, or of E4M3 with their scales where the matrix is in
  // blocks of 128 of these too.
  void RowsForWeight(const char* name, const TensorView& x, const TensorView& scales, int64_t rows,
                     const Weight& weight);
  // That both name the same kind of matrix, as a gate and an up projection do.
  void SameKind(const char* name, const Weight& a, const Weight& b);
  // The dtypes are equal.
  void SameDType(const char* name_a, const TensorView& a, const char* name_b, const TensorView& b);
  // dtype is F32 or that of the activations.
  void F32OrAct(const char* name, const TensorView& view, const TensorView& act);
  void Absent(const char* name, const TensorView& view);
  void Range(const char* name, int64_t value, int64_t low, int64_t high);
  void RangeF(const char* name, double value, double low, double high);
  // Every element of an I32 or I64 tensor without gaps is in [low, high] (host memory only;
  // otherwise not read).
  void Contents(const char* name, const TensorView& view, int64_t low, int64_t high);
  // offsets[0] == 0, ascending, last <= limit (== limit if exact).
  void Offsets(const char* name, const TensorView& view, int64_t limit, bool exact);
  void Pages(const KvPages& pages);
  void Batch(const PagedBatch& batch, const KvPages& pages, int64_t rows);
  void Fail(const std::string& message);
  bool readable() const { return ok() && device_.host_memory(); }

 private:
  const char* const op_;
  const Device& device_;
  absl::Status status_;
};

}  // namespace baton::kernels

#endif  // BATON_KERNELS_CHECK_ARGS_H_
