#include "transport/nccl/cuda_buffers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {

absl::Status RuntimeStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

namespace {

class CudaBuffers final : public BufferOps {
 public:
  CudaBuffers(int gpu, cudaStream_t stream, SumOnGpu sum)
      : gpu_(gpu), stream_(stream), sum_(std::move(sum)) {}
  ~CudaBuffers() override { (void)cudaFree(scratch_); }

  absl::Status Copy(std::span<std::byte> to, std::span<const std::byte> from) override {
    if (to.empty()) return absl::OkStatus();
    (void)cudaSetDevice(gpu_);
    return RuntimeStatus(
        cudaMemcpyAsync(to.data(), from.data(), to.size(), cudaMemcpyDefault, stream_),
        "a copy on the GPU");
  }
  absl::Status Zero(std::span<std::byte> to) override {
    if (to.empty()) return absl::OkStatus();
    (void)cudaSetDevice(gpu_);
    return RuntimeStatus(cudaMemsetAsync(to.data(), 0, to.size(), stream_), "a fill on the GPU");
  }
  absl::Status Sum(ReduceType type, std::span<const std::byte* const> terms,
                   std::span<std::byte> out) override {
    if (out.empty()) return absl::OkStatus();
    if (!sum_) return absl::UnimplementedError("this group does not add up memory of GPUs");
    (void)cudaSetDevice(gpu_);
    return RuntimeStatus(sum_(type, terms, out, stream_), "a sum on the GPU");
  }
  absl::StatusOr<std::span<std::byte>> Scratch(size_t bytes) override {
    if (bytes > bytes_) {
      (void)cudaSetDevice(gpu_);
      (void)cudaFree(std::exchange(scratch_, nullptr));
      bytes_ = 0;
      BATON_RETURN_IF_ERROR(RuntimeStatus(cudaMalloc(&scratch_, bytes), "memory for a sum"));
      bytes_ = bytes;
    }
    return std::span(static_cast<std::byte*>(scratch_), bytes);
  }

 private:
  const int gpu_;
  const cudaStream_t stream_;
  const SumOnGpu sum_;
  void* scratch_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace

std::unique_ptr<BufferOps> MakeCudaBuffers(int gpu, cudaStream_t stream, SumOnGpu sum) {
  return std::make_unique<CudaBuffers>(gpu, stream, std::move(sum));
}

}  // namespace baton::transport
