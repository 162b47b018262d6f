#include <cuda_runtime_api.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/gpu_place.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/nccl/nccl_group.h"

namespace baton::transport {
namespace {

class NcclGpuPlace final : public GpuPlace {
 public:
  NcclGpuPlace(int gpu, cudaStream_t stream) : gpu_(gpu), stream_(stream) {}
  ~NcclGpuPlace() override {
    (void)cudaSetDevice(gpu_);
    (void)cudaStreamDestroy(stream_);
  }

  int gpu() const override { return gpu_; }
  void* queue() const override { return stream_; }
  std::shared_ptr<std::mutex> launches() const override { return launches_; }
  absl::StatusOr<std::unique_ptr<TcpRendezvous>> NewRendezvous(
      const UcxGroupOptions& hosts, std::shared_ptr<Clock> clock) override {
    return CreateNcclRendezvous(
        {.hosts = hosts, .gpu = gpu_, .stream = stream_, .sum = {}, .launches = launches_},
        std::move(clock));
  }

 private:
  const int gpu_;
  const cudaStream_t stream_;
  const std::shared_ptr<std::mutex> launches_ = std::make_shared<std::mutex>();
};

}  // namespace

int CountGpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

absl::StatusOr<std::unique_ptr<GpuPlace>> CreateGpuPlace(int gpu) {
  const int count = CountGpus();
  if (gpu < 0 || gpu >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a rank wants GPU ", gpu, ", and this process sees ", count,
        " of them; ranks of a group have a GPU each: start fewer, or show more of the machine's "
        "GPUs to the process (CUDA_VISIBLE_DEVICES)"));
  }
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(gpu), "cudaSetDevice"));
  cudaStream_t stream = nullptr;
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                      "cudaStreamCreateWithFlags"));
  return std::make_unique<NcclGpuPlace>(gpu, stream);
}

}  // namespace baton::transport
