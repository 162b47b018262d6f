#include "kernels/cuda/cublaslt_verdicts.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::kernels::cuda {
namespace {

constexpr char kWhat[] = "samples of a product";

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtVerdicts>> CublasLtVerdicts::Create() {
  std::unique_ptr<CublasLtVerdicts> verdicts(new CublasLtVerdicts);
  void* memory = nullptr;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaMallocHost(&memory, kMost * 2 * kMostBytes), kWhat));
  verdicts->memory_ = static_cast<char*>(memory);
  for (size_t i = 0; i < kMost; ++i) {
    verdicts->free_.push_back(verdicts->memory_ + i * 2 * kMostBytes);
  }
  return verdicts;
}

CublasLtVerdicts::~CublasLtVerdicts() {
  for (const Pending& pending : pending_) (void)cudaEventDestroy(pending.end);
  if (memory_ != nullptr) (void)cudaFreeHost(memory_);
}

absl::Status CublasLtVerdicts::Expect(CublasLtPlan& plan, const CublasLtProduct& product,
                                      const char* small, const char* large, size_t bytes,
                                      std::string what, cudaStream_t stream) {
  BATON_CHECK(bytes <= kMostBytes);
  if (free_.empty()) {
    BATON_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(pending_.front().end), kWhat));
    BATON_RETURN_IF_ERROR(Take());
  }
  Pending pending{.plan = &plan,
                  .product = product,
                  .bytes = bytes,
                  .what = std::move(what),
                  .outputs = free_.back()};
  for (const auto& [to, from] :
       {std::pair{pending.outputs, small}, {pending.outputs + kMostBytes, large}}) {
    BATON_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), kWhat));
  }
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&pending.end, cudaEventDisableTiming), kWhat));
  free_.pop_back();
  pending_.push_back(std::move(pending));
  plan.SetCompared(product, true);
  return CudaStatus(cudaEventRecord(pending_.back().end, stream), kWhat);
}

absl::Status CublasLtVerdicts::Judge(const Pending& pending) {
  if (std::memcmp(pending.outputs, pending.outputs + kMostBytes, pending.bytes) == 0) {
    return absl::OkStatus();
  }
  pending.plan->SetCompared(pending.product, false);
  return absl::FailedPreconditionError(absl::StrCat(
      pending.what, ", so a request's tokens would depend on its batch; ", kCublasLtSwitch));
}

absl::Status CublasLtVerdicts::Take() {
  absl::Status first;
  while (!pending_.empty()) {
    const Pending& next = pending_.front();
    const cudaError_t ended = cudaEventQuery(next.end);
    if (ended == cudaErrorNotReady) break;
    BATON_RETURN_IF_ERROR(CudaStatus(ended, kWhat));
    first.Update(Judge(next));
    (void)cudaEventDestroy(next.end);
    free_.push_back(next.outputs);
    pending_.pop_front();
  }
  return first;
}

}  // namespace baton::kernels::cuda
