#ifndef BATON_KERNELS_CUDA_CUDA_DEVICE_H_
#define BATON_KERNELS_CUDA_CUDA_DEVICE_H_

// What the CUDA backend keeps with a Device: its GPU, one stream that orders all of its ops, and
// working memory. Belongs to one Device and follows its rule of one op at a time.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace baton::kernels::cuda {

class CublasLtGemm;

class CudaState final : public DeviceState {
 public:
  // FAILED_PRECONDITION without a driver, without the GPU, or for one that is too old.
  static absl::StatusOr<std::unique_ptr<CudaState>> Create(const DeviceOptions& options);
  static CudaState& Of(Device& device) { return static_cast<CudaState&>(*device.state()); }
  // What an op begins with: the calling thread uses this GPU, and the working memory is free.
  static CudaState& Begin(Device& device);
  ~CudaState() override;

  int gpu() const { return gpu_; }
  // 89: Ada, 90: Hopper, 100: Blackwell.
  int architecture() const { return architecture_; }
  // Whether kernels for Hopper's warpgroups may be used.
  bool warpgroups() const { return warpgroups_; }
  // Number of SMs, for choosing grids; never part of what decides a sum's order.
  int processors() const { return processors_; }
  cudaStream_t stream() const { return stream_; }
  // DeviceOptions::working_bytes.
  int64_t working_bytes() const { return working_bytes_; }
  // Null unless DeviceOptions::dense_gemm says cuBLASLt.
  CublasLtGemm* cublaslt() const { return cublaslt_.get(); }

  // Working memory of one op, in the GPU's memory: `bytes`, 256-byte aligned, not initialized.
  // Pieces of one op lie side by side; Begin gives all back, to the ops behind it in the stream.
  // It is taken and given back in the stream's order, by calls that wait for nothing: what stands
  // in the stream may wait for other ranks, and only they know a deadline for that.
  absl::StatusOr<void*> ScratchBytes(size_t bytes);
  template <typename T>
  absl::StatusOr<T*> Scratch(int64_t count) {
    absl::StatusOr<void*> data = ScratchBytes(static_cast<size_t>(count) * sizeof(T));
    if (!data.ok()) return data.status();
    return static_cast<T*>(*data);
  }

  // The host's values in working memory; they may change when it returns. Null for none. `what` is
  // for the message of a failure.
  template <typename T>
  absl::StatusOr<T*> Upload(const std::vector<T>& values, const char* what) {
    if (values.empty()) return nullptr;
    absl::StatusOr<void*> copied = UploadBytes(values.data(), values.size() * sizeof(T), what);
    if (!copied.ok()) return copied.status();
    return static_cast<T*>(*copied);
  }
  absl::StatusOr<void*> UploadBytes(const void* from, size_t bytes, const char* what);
  // The same to a place of the caller's.
  absl::Status EnqueueUpload(void* to, const void* from, size_t bytes, const char* what);
  // Waits for what the stream was given, and for the copy. FAILED_PRECONDITION for results that
  // must not be used (CublasLtGemm).
  absl::Status CopyToHost(void* to, const void* from, size_t bytes, const char* what);

  // As the methods of Device of these names.
  bool can_record() const { return records_; }
  absl::Status BeginRecording();
  absl::StatusOr<std::unique_ptr<Recording>> EndRecording();
  absl::Status Replay(Recording& recording);

  // Waits for what the stream was given; fails as CopyToHost.
  absl::Status Synchronize(const char* what);
  bool recording() const { return recording_; }

  // What an op returns behind its last launch: `launched` as a status, and in a blocking device the
  // first error of what runs.
  absl::Status Finish(cudaError_t launched, const char* op);

 private:
  CudaState() = default;
  void ResetScratch();

  int gpu_ = 0;
  int architecture_ = 0;
  int processors_ = 0;
  int64_t working_bytes_ = 0;
  bool blocking_ = false;
  bool records_ = false;
  bool recording_ = false;  // now
  bool warpgroups_ = false;
  cudaStream_t stream_ = nullptr;
  bool owns_stream_ = false;
  std::unique_ptr<CublasLtGemm> cublaslt_;
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  std::vector<Block> blocks_;  // the last one is in use
  size_t used_ = 0;            // bytes of the last block
  uint64_t moves_ = 0;  // how often a block was given back: what was recorded before may use it
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_CUDA_DEVICE_H_
