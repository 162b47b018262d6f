#include "model/expert_prefetch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::TensorView;

constexpr int64_t kPieceBytes = int64_t{1} << 20;

// Weights' rows follow each other without holes.
// For kernels before 5.14, which cannot read pages in without touching them.
void Touch(const char* begin, const char* end, uintptr_t page) {
  for (const char* at = begin; at < end; at += page) {
    [[maybe_unused]] const char byte = *static_cast<const volatile char*>(at);
  }
}

}  // namespace

absl::Status ReadIn(const char* data, int64_t bytes) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes);
#ifdef MADV_POPULATE_READ
  constexpr int kTries = 8;  // a signal may come in between
  for (int i = 0; i < kTries; ++i) {
    if (madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ) == 0) {
      return absl::OkStatus();
    }
    if (errno == EFAULT || errno == EHWPOISON) {
      return absl::DataLossError(
          "an expert's weights cannot be read from the checkpoint's file any more: was it cut or "
          "replaced while in use?");
    }
    if (errno == EINVAL || errno == ENOMEM) break;  // not known here, or memory of another kind
  }
#endif
  Touch(data, data + bytes, page);
  return absl::OkStatus();
}

int64_t WeightBytes(const kernels::Weight& weight) {
  return static_cast<int64_t>(weight.w.bytes() + weight.scales.bytes());
}

absl::Status Prefetch(const kernels::Weight& weight,
                      absl::FunctionRef<bool(int64_t bytes)> may_go_on) {
  for (const TensorView* view : {&weight.w, &weight.scales}) {
    const char* const data = static_cast<const char*>(view->data);
    const int64_t bytes = static_cast<int64_t>(view->bytes());
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
      const int64_t piece = std::min(kPieceBytes, bytes - at);
      if (!may_go_on(piece)) return absl::CancelledError("nobody waits for this copy any more");
      BATON_RETURN_IF_ERROR(ReadIn(data + at, piece));
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::model
