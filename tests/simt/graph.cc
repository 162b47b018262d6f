// Graphs: what streams were given while they captured, to be run again and again.

#include <algorithm>
#include <utility>

#include "tests/simt/stream.h"

namespace baton::simt {

cudaError_t Runtime::BeginCapture(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr || stream == nullptr) return cudaErrorStreamCaptureUnsupported;
  if (found->capture != nullptr) return cudaErrorIllegalState;
  found->capture = std::make_shared<Graph>();
  found->is_origin = true;
  found->captured.clear();
  return cudaSuccess;
}

cudaError_t Runtime::EndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->capture == nullptr || !found->is_origin) return cudaErrorIllegalState;
  const std::shared_ptr<Graph> captured = std::exchange(found->capture, nullptr);
  found->is_origin = false;
  // Every branch must have come back to the stream that began.
  std::vector<bool> joined(captured->nodes.size(), false);
  std::vector<size_t> open = std::exchange(found->captured, {});
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (joined[node]) continue;
    joined[node] = true;
    for (const size_t before : captured->nodes[node].behind) open.push_back(before);
  }
  for (const auto& [handle, other] : streams_) {
    if (other->capture != captured) continue;
    other->capture = nullptr;
    other->captured.clear();
  }
  if (std::find(joined.begin(), joined.end(), false) != joined.end()) {
    return cudaErrorStreamCaptureUnjoined;
  }
  *graph = reinterpret_cast<cudaGraph_t>(next_handle_++);
  graphs_[*graph] = captured;
  return cudaSuccess;
}

cudaError_t Runtime::DestroyGraph(cudaGraph_t graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return graphs_.erase(graph) > 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t Runtime::CountNodes(cudaGraph_t graph, size_t* nodes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(graph);
  if (it == graphs_.end()) return cudaErrorInvalidResourceHandle;
  *nodes = it->second->nodes.size();
  return cudaSuccess;
}

cudaError_t Runtime::Instantiate(cudaGraphExec_t* out, cudaGraph_t graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(graph);
  if (it == graphs_.end()) return cudaErrorInvalidResourceHandle;
  *out = reinterpret_cast<cudaGraphExec_t>(next_handle_++);
  execs_[*out] = it->second;
  return cudaSuccess;
}

cudaError_t Runtime::DestroyExec(cudaGraphExec_t exec) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return execs_.erase(exec) > 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t Runtime::LaunchGraph(cudaGraphExec_t exec, cudaStream_t stream) {
  std::shared_ptr<Graph> graph;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = execs_.find(exec);
    if (it == execs_.end()) return cudaErrorInvalidResourceHandle;
    graph = it->second;
  }
  // One operation that runs the nodes in any order their edges allow.
  struct Progress {
    std::vector<bool> done;
    size_t left = 0;
  };
  auto progress = std::make_shared<Progress>();
  progress->done.assign(graph->nodes.size(), false);
  progress->left = graph->nodes.size();
  return Enqueue(stream, [this, graph, progress](uint32_t op) {
    while (progress->left > 0) {
      std::vector<size_t> ready;
      for (size_t i = 0; i < graph->nodes.size(); ++i) {
        if (progress->done[i]) continue;
        const std::vector<size_t>& behind = graph->nodes[i].behind;
        if (std::all_of(behind.begin(), behind.end(),
                        [&](size_t node) { return progress->done[node]; })) {
          ready.push_back(i);
        }
      }
      const size_t chosen = ready[NextSeed() % ready.size()];
      if (failure() != cudaSuccess) return true;
      if (!graph->nodes[chosen].work(op)) return false;
      progress->done[chosen] = true;
      --progress->left;
    }
    return true;
  });
}

}  // namespace baton::simt
