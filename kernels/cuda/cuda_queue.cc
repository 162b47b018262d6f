#include "kernels/cuda/cuda_queue.h"

#include <memory>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::kernels::cuda {
namespace {

class EventFence final : public Fence {
 public:
  static absl::StatusOr<std::unique_ptr<Fence>> Create(cudaStream_t stream) {
    std::unique_ptr<EventFence> fence(new EventFence);
    // Without timing, and a wait sleeps: other threads of the process have work.
    BATON_RETURN_IF_ERROR(CudaStatus(
        cudaEventCreateWithFlags(&fence->event_, cudaEventDisableTiming | cudaEventBlockingSync),
        "cudaEventCreateWithFlags"));
    BATON_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(fence->event_, stream), "cudaEventRecord"));
    return fence;
  }
  ~EventFence() override {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }
  absl::Status Wait() override {
    return CudaStatus(cudaEventSynchronize(event_), "an op of the GPU");
  }

 private:
  EventFence() = default;
  cudaEvent_t event_ = nullptr;
};

class GraphRecording final : public Recording {
 public:
  GraphRecording(cudaGraphExec_t exec, uint64_t moves) : exec_(exec), moves_(moves) {}
  // The runtime keeps what still runs.
  ~GraphRecording() override { (void)cudaGraphExecDestroy(exec_); }
  cudaGraphExec_t exec() const { return exec_; }
  uint64_t moves() const { return moves_; }  // of working memory when it was recorded

 private:
  const cudaGraphExec_t exec_;
  const uint64_t moves_;
};

absl::StatusOr<std::unique_ptr<Fence>> Mark(Device& device) {
  CudaState& state = CudaState::Of(device);
  BATON_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(state.gpu()), "cudaSetDevice"));
  return EventFence::Create(state.stream());
}

bool CanRecord(const Device& device) {
  return static_cast<const CudaState&>(*device.state()).can_record();
}

absl::Status BeginRecording(Device& device) { return CudaState::Begin(device).BeginRecording(); }

absl::StatusOr<std::unique_ptr<Recording>> EndRecording(Device& device) {
  return CudaState::Of(device).EndRecording();
}

absl::Status Replay(Device& device, Recording& recording) {
  return CudaState::Begin(device).Replay(recording);
}

}  // namespace

absl::Status CudaState::BeginRecording() {
  BATON_CHECK(records_ && !recording_);
  // Of this thread's calls only: others use the GPU for work of their own.
  BATON_RETURN_IF_ERROR(CudaStatus(
      cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture"));
  recording_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Recording>> CudaState::EndRecording() {
  BATON_CHECK(std::exchange(recording_, false));
  cudaGraph_t graph = nullptr;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture"));
  cudaGraphExec_t exec = nullptr;
  const absl::Status status =
      CudaStatus(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  (void)cudaGraphDestroy(graph);
  BATON_RETURN_IF_ERROR(status);
  return std::make_unique<GraphRecording>(exec, moves_);
}

absl::Status CudaState::Replay(Recording& recording) {
  const GraphRecording& graph = static_cast<const GraphRecording&>(recording);
  if (graph.moves() != moves_) {
    return absl::FailedPreconditionError("the working memory of the recorded ops has moved");
  }
  return Finish(cudaGraphLaunch(graph.exec(), stream_), "ops that were recorded");
}

QueueTable CudaQueue() {
  return {.mark = Mark,
          .can_record = CanRecord,
          .begin_recording = BeginRecording,
          .end_recording = EndRecording,
          .replay = Replay};
}

}  // namespace baton::kernels::cuda
