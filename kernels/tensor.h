#ifndef BATON_KERNELS_TENSOR_H_
#define BATON_KERNELS_TENSOR_H_

// A view of a dense array: pointer, element type, shape and strides. It owns nothing, is freely
// copied and is passed by value or const reference. `data` points into the memory of the device
// that runs the op (host memory for `reference` and `cpu`). One type serves inputs and outputs; an
// op writes only through the arguments that ops.h calls outputs, so a read-only mapping of a
// checkpoint is a legal input.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"

namespace baton::kernels {

// F8E4M3 is the "fn" variant: no infinities, 0x7f and 0xff are NaN, largest finite value 448.
enum class DType : uint8_t { kF32, kBF16, kF8E4M3, kI32, kI64, kU8 };

constexpr size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kF8E4M3:
    case DType::kU8:
      return 1;
  }
  return 0;
}

constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8E4M3";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;                                // 0: no tensor (a nullable argument that is absent)
  std::array<int64_t, kMaxRank> shape = {};    // elements; entries at and after `rank` are 0
  std::array<int64_t, kMaxRank> strides = {};  // elements (not bytes) from one index to the next

  // A row-major view of `shape` without gaps. Accepts const data because most inputs are const.
  static TensorView Contiguous(const void* data, DType dtype,
                               std::initializer_list<int64_t> shape) {
    BATON_CHECK_LE(shape.size(), static_cast<size_t>(kMaxRank));
    TensorView view;
    view.data = const_cast<void*>(data);
    view.dtype = dtype;
    for (int64_t extent : shape) view.shape[view.rank++] = extent;
    int64_t stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.strides[i] = stride;
      stride *= view.shape[i];
    }
    return view;
  }

  bool absent() const { return rank == 0; }
  int64_t dim(int i) const { return shape[i]; }

  int64_t elements() const {
    int64_t count = rank == 0 ? 0 : 1;
    for (int i = 0; i < rank; ++i) count *= shape[i];
    return count;
  }
  // Bytes of the elements alone, gaps between rows not counted.
  size_t bytes() const { return static_cast<size_t>(elements()) * DTypeBytes(dtype); }

  bool contiguous() const {
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }
  // True when everything behind the first dimension lies without gaps (rows may be far apart).
  bool rows_contiguous() const {
    int64_t stride = 1;
    for (int i = rank - 1; i >= 1; --i) {
      if (shape[i] != 1 && strides[i] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }

  // Address of row i of the first dimension.
  template <typename T>
  T* row(int64_t i) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(data) +
                                i * strides[0] * static_cast<int64_t>(DTypeBytes(dtype)));
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // The part [begin, end) of dimension `d`; the other dimensions stay.
  TensorView Slice(int d, int64_t begin, int64_t end) const {
    BATON_CHECK(d >= 0 && d < rank && 0 <= begin && begin <= end && end <= shape[d]);
    TensorView view = *this;
    if (view.data != nullptr) {
      view.data = static_cast<uint8_t*>(data) +
                  begin * strides[d] * static_cast<int64_t>(DTypeBytes(dtype));
    }
    view.shape[d] = end - begin;
    return view;
  }
  // The same elements under another shape; this view must be contiguous and hold as many.
  TensorView Reshape(std::initializer_list<int64_t> new_shape) const {
    BATON_CHECK(contiguous());
    TensorView view = Contiguous(data, dtype, new_shape);
    BATON_CHECK_EQ(view.elements(), elements());
    return view;
  }

  // For messages: "BF16[3, 128]".
  std::string ToString() const {
    if (absent()) return "(absent)";
    std::string text = DTypeName(dtype);
    text += '[';
    for (int i = 0; i < rank; ++i) {
      if (i > 0) text += ", ";
      text += std::to_string(shape[i]);
    }
    return text + "]";
  }
};

}  // namespace baton::kernels

#endif  // BATON_KERNELS_TENSOR_H_
