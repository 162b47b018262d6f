#include "kernels/check_args.h"

#include "absl/strings/str_cat.h"

namespace baton::kernels {
namespace {

std::string DTypeNames(uint32_t dtypes) {
  std::string text;
  for (DType dtype :
       {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI32, DType::kI64, DType::kU8}) {
    if ((dtypes & Bit(dtype)) == 0) continue;
    if (!text.empty()) text += " or ";
    text += DTypeName(dtype);
  }
  return text;
}

std::string ShapeText(std::initializer_list<int64_t> shape) {
  std::string text = "[";
  for (int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t IndexAt(const TensorView& view, int64_t i) {
  return view.dtype == DType::kI64 ? view.as<const int64_t>()[i] : view.as<const int32_t>()[i];
}

}  // namespace

void ArgCheck::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(op_, ": ", message));
}

void ArgCheck::Tensor(const char* name, const TensorView& view, uint32_t dtypes,
                      std::initializer_list<int64_t> shape, Layout layout) {
  if (!ok()) return;
  const auto expected = [&] {
    return absl::StrCat(", expected ", DTypeNames(dtypes), ShapeText(shape));
  };
  bool shape_ok = view.rank == static_cast<int>(shape.size());
  for (int i = 0; shape_ok && i < view.rank; ++i) shape_ok = view.shape[i] == shape.begin()[i];
  if (!shape_ok || (dtypes & Bit(view.dtype)) == 0) {
    return Fail(absl::StrCat(name, " is ", view.ToString(), expected()));
  }
  if (view.elements() == 0) return;
  if (view.data == nullptr) return Fail(absl::StrCat(name, " has no data", expected()));
  if (reinterpret_cast<uintptr_t>(view.data) % DTypeBytes(view.dtype) != 0) {
    return Fail(absl::StrCat(name, " is at an address that is not a multiple of ",
                             DTypeBytes(view.dtype), " bytes; copy it to aligned memory"));
  }
  int64_t row = 1;
  for (int i = 1; i < view.rank; ++i) row *= view.shape[i];
  const bool gaps_ok = layout == Layout::kRows && view.rows_contiguous() &&
                       (view.shape[0] <= 1 || view.strides[0] >= row);
  if (!view.contiguous() && !gaps_ok) {
    Fail(absl::StrCat(name, " has strides that are not those of row-major ",
                      layout == Layout::kRows ? "rows" : "data without gaps"));
  }
}

void ArgCheck::WeightMatrix(const char* name, const Weight& weight, int64_t rows, int64_t columns) {
  Tensor(name, weight.w, kWeights, {rows, columns}, Layout::kRows);
  if (!ok()) return;
  if (weight.w.dtype != DType::kF8E4M3) {
    return Absent("scales of a matrix that is not F8E4M3", weight.scales);
  }
  Range("block_n", weight.block_n, 1, INT32_MAX);
  Range("first_row", weight.first_row, 0, weight.block_n - 1);
  Range("block_k", weight.block_k, 64, INT32_MAX);
  if (weight.block_k % 64 != 0) {
    return Fail(absl::StrCat("block_k is ", weight.block_k, ", expected a multiple of 64"));
  }
  if (!ok()) return;
  Tensor("block scales of an F8E4M3 matrix", weight.scales, kF32Only,
         {CeilDiv(weight.first_row + rows, weight.block_n), CeilDiv(columns, weight.block_k)});
}

void ArgCheck::RowsForWeight(const char* name, const TensorView& x, const TensorView& scales,
                             int64_t rows, const Weight& weight) {
  const int64_t columns = weight.w.dim(1);
  Tensor(name, x, kWeights, {rows, columns}, Layout::kRows);
  if (!ok()) return;
  if (x.dtype != DType::kF8E4M3) return Absent("scales of rows that are not F8E4M3", scales);
  if (weight.w.dtype != DType::kF8E4M3 || weight.block_k != 128) {
    return Fail(absl::StrCat(name, " is ", x.ToString(), " for a matrix ", weight.w.ToString(),
                             " in blocks of ", weight.block_k,
                             " k, expected F32 or BF16, or an F8E4M3 matrix in blocks of 128"));
  }
  Tensor("scales of F8E4M3 rows", scales, kF32Only, {rows, CeilDiv(columns, 128)}, Layout::kRows);
}

void ArgCheck::SameKind(const char* name, const Weight& a, const Weight& b) {
  if (!ok()) return;
  if (a.w.dtype != b.w.dtype || a.block_n != b.block_n || a.block_k != b.block_k) {
    Fail(absl::StrCat(name, " is ", b.w.ToString(), " in blocks of ", b.block_n, "x", b.block_k,
                      ", expected ", a.w.ToString(), " in blocks of ", a.block_n, "x", a.block_k));
  }
}

void ArgCheck::SameDType(const char* name_a, const TensorView& a, const char* name_b,
                         const TensorView& b) {
  if (ok() && a.dtype != b.dtype) {
    Fail(absl::StrCat(name_b, " is ", b.ToString(), ", expected the dtype of ", name_a, " (",
                      DTypeName(a.dtype), ")"));
  }
}

void ArgCheck::F32OrAct(const char* name, const TensorView& view, const TensorView& act) {
  if (ok() && view.dtype != DType::kF32 && view.dtype != act.dtype) {
    Fail(absl::StrCat(name, " is ", view.ToString(), ", expected F32 or ", DTypeName(act.dtype)));
  }
}

void ArgCheck::Absent(const char* name, const TensorView& view) {
  if (ok() && !view.absent()) Fail(absl::StrCat(name, " is ", view.ToString(), ", expected none"));
}

void ArgCheck::Range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (ok() && (value < low || value > high)) {
    Fail(absl::StrCat(name, " is ", value, ", expected ", low, "..", high));
  }
}

void ArgCheck::RangeF(const char* name, double value, double low, double high) {
  if (ok() && !(value >= low && value <= high)) {
    Fail(absl::StrCat(name, " is ", value, ", expected ", low, "..", high));
  }
}

void ArgCheck::Contents(const char* name, const TensorView& view, int64_t low, int64_t high) {
  if (!readable()) return;
  for (int64_t i = 0; i < view.elements(); ++i) {
    const int64_t value = IndexAt(view, i);
    if (value < low || value > high) {
      return Fail(
          absl::StrCat(name, " holds ", value, " at index ", i, ", expected ", low, "..", high));
    }
  }
}

void ArgCheck::Offsets(const char* name, const TensorView& view, int64_t limit, bool exact) {
  if (!readable()) return;
  int64_t before = 0;
  for (int64_t i = 0; i < view.elements(); ++i) {
    const int64_t value = IndexAt(view, i);
    if (value < before || value > limit || (i == 0 && value != 0)) {
      return Fail(absl::StrCat(name, " holds ", value, " at index ", i,
                               ", expected an ascending sequence from 0 to at most ", limit));
    }
    before = value;
  }
  if (exact && before != limit) {
    Fail(absl::StrCat(name, " ends at ", before, ", expected ", limit));
  }
}

void ArgCheck::Pages(const KvPages& pages) {
  Range("pages.page_tokens", pages.page_tokens, 16, 256);
  Range("pages.kv_lora", pages.kv_lora, 32, 4096);
  Range("pages.rope", pages.rope, 2, 256);
  if (!ok()) return;
  if (pages.kv_lora % 32 != 0 || pages.rope % 2 != 0) {
    return Fail(absl::StrCat("pages have kv_lora ", pages.kv_lora, " and rope ", pages.rope,
                             ", expected a multiple of 32 and an even number"));
  }
  Tensor("pages.data", pages.data, Bit(DType::kU8),
         {pages.data.dim(0), pages.data.rank > 1 ? pages.data.dim(1) : 0}, Layout::kRows);
  if (!ok()) return;
  const int64_t needed = pages.page_tokens * KvEntryBytes(pages.format, pages.kv_lora, pages.rope);
  if (pages.data.dim(1) < needed) {
    return Fail(absl::StrCat("a page has ", pages.data.dim(1), " bytes, expected at least ", needed,
                             " for ", pages.page_tokens, " tokens of ",
                             KvFormatName(pages.format)));
  }
  if (reinterpret_cast<uintptr_t>(pages.data.data) % 4 != 0 || pages.data.strides[0] % 4 != 0) {
    Fail("pages must lie at multiples of 4 bytes");
  }
}

void ArgCheck::Batch(const PagedBatch& batch, const KvPages& pages, int64_t rows) {
  const int64_t sequences = batch.context_len.dim(0);
  Tensor("context_len", batch.context_len, kI32Only, {sequences});
  Tensor("query_start", batch.query_start, kI32Only, {sequences + 1});
  Tensor("page_table", batch.page_table, kI32Only, {sequences, batch.page_table.dim(1)},
         Layout::kRows);
  Offsets("query_start", batch.query_start, rows, /*exact=*/true);
  int64_t tokens = 0;
  for (int64_t s = 0; s < sequences && readable(); ++s) {
    const int32_t* start = batch.query_start.as<const int32_t>() + s;
    const int64_t length = batch.context_len.as<const int32_t>()[s];
    if (length < start[1] - start[0]) {
      return Fail(absl::StrCat("context_len holds ", length, " for sequence ", s, ", which has ",
                               start[1] - start[0], " rows; it counts them too"));
    }
    tokens += length;
    const int64_t used = start[1] == start[0] ? 0 : CeilDiv(length, pages.page_tokens);
    if (used > batch.page_table.dim(1)) {
      return Fail(absl::StrCat("sequence ", s, " needs ", used, " pages, the page table has ",
                               batch.page_table.dim(1)));
    }
    const int32_t* table = batch.page_table.row<const int32_t>(s);
    for (int64_t i = 0; i < used; ++i) {
      if (table[i] < 0 || table[i] >= pages.data.dim(0)) {
        return Fail(absl::StrCat("page_table holds ", table[i], " for page ", i, " of sequence ", s,
                                 ", expected 0..", pages.data.dim(0) - 1));
      }
    }
  }
  if (readable() && batch.context_tokens != 0 && batch.context_tokens < tokens) {
    Fail(absl::StrCat("context_tokens is ", batch.context_tokens, ", expected 0 or at least ",
                      tokens, ", the sum of context_len"));
  }
}

}  // namespace baton::kernels
