#ifndef BATON_TESTS_SIMT_STREAM_H_
#define BATON_TESTS_SIMT_STREAM_H_

// Devices, streams, events and graphs. A stream is a queue of operations; for each device one OS
// thread runs them, one at a time, drawing among the streams that have one ready. So whatever a
// program gets by luck rather than by an event or a wait, some seed takes away.
//
// Order is tracked by vector clocks: an operation is behind another if it follows it in its stream,
// if an event says so, or if the host had waited for that one when it enqueued this one.
//
// Thread-safe. Never destroyed: its threads end with the process.

#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/simt/block.h"
#include "tests/simt/options.h"

namespace baton::simt {

// What an operation does, called by the device's thread with the operation's number; false: not
// yet, call again.
using Work = std::function<bool(uint32_t op)>;

// How far into each stream (by its number), as of an operation's end.
using OrderClock = std::map<int, uint64_t>;

class Runtime {
 public:
  static Runtime& Get();

  // --- options and faults
  void SetOptions(const Options& options);
  Options options();
  void Report(const Fault& fault);
  std::optional<Fault> TakeFault();
  // The error that every call answers after a fault; cudaSuccess before.
  cudaError_t failure();
  // A program's error in its use of the runtime, kept as a fault; answers `error`.
  cudaError_t Misuse(const std::string& what, cudaError_t error);

  // --- streams; null stands for the device's default stream
  cudaError_t CreateStream(cudaStream_t* out);
  cudaError_t DestroyStream(cudaStream_t stream);
  // Runs `work` behind what the stream has been given before; part of a graph while it captures.
  cudaError_t Enqueue(cudaStream_t stream, Work work);
  cudaError_t Synchronize(cudaStream_t stream);
  cudaError_t SynchronizeDevice();
  cudaError_t Query(cudaStream_t stream);
  bool IsCapturing(cudaStream_t stream);
  uint64_t launches();

  // --- events
  cudaError_t CreateEvent(cudaEvent_t* out);
  cudaError_t DestroyEvent(cudaEvent_t event);
  cudaError_t Record(cudaEvent_t event, cudaStream_t stream);
  cudaError_t Await(cudaStream_t stream, cudaEvent_t event);
  cudaError_t Synchronize(cudaEvent_t event);
  cudaError_t Query(cudaEvent_t event);
  cudaError_t ElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end);

  // --- graphs
  cudaError_t BeginCapture(cudaStream_t stream);
  cudaError_t EndCapture(cudaStream_t stream, cudaGraph_t* graph);
  cudaError_t DestroyGraph(cudaGraph_t graph);
  cudaError_t Instantiate(cudaGraphExec_t* out, cudaGraph_t graph);
  cudaError_t DestroyExec(cudaGraphExec_t exec);
  cudaError_t LaunchGraph(cudaGraphExec_t exec, cudaStream_t stream);
  cudaError_t CountNodes(cudaGraph_t graph, size_t* nodes);

  bool IsOrderedBehind(uint32_t op, uint32_t earlier);
  // Spreads the blocks of a grid over OS threads; returns when all have run.
  void RunGrid(Grid& grid);
  // A seed for the next thing that wants to be drawn.
  uint64_t NextSeed();

  // The device of the calling thread, for cudaSetDevice.
  static int& current_device();

 private:
  struct Node {
    Work work;
    std::vector<size_t> behind;  // nodes
  };
  struct Graph {
    std::vector<Node> nodes;
  };
  struct Event {
    uint64_t recorded = 0;  // times
    uint64_t reached = 0;   // of these, by its stream
    OrderClock clock;
    std::chrono::steady_clock::time_point at;
    std::shared_ptr<Graph> capture;
    std::vector<size_t> captured;  // nodes that it stands for
  };
  struct Op {
    uint32_t id = 0;
    uint64_t sequence = 0;
    Work work;                         // null: of an event
    std::shared_ptr<Event> waits_for;  // until it was reached `times` times
    std::shared_ptr<Event> reaches;
    uint64_t times = 0;
  };
  struct Stream {
    int number = 0;
    int device = 0;
    uint64_t enqueued = 0, done = 0;
    std::deque<Op> queue;
    OrderClock clock;  // of the operation enqueued last
    std::shared_ptr<Graph> capture;
    bool is_origin = false;
    std::vector<size_t> captured;  // nodes that the next one is behind
  };
  struct OpOrder {
    int stream = 0;
    uint64_t sequence = 0;
    OrderClock clock;
  };

  Runtime();
  void RunDevice(int device);
  void RunWorker();
  void StartThreads();
  std::shared_ptr<Stream> Find(cudaStream_t stream);
  std::shared_ptr<Event> Find(cudaEvent_t event);
  void Push(Stream& stream, Op op);
  bool IsReady(const Stream& stream) const;
  void AwaitDone(std::unique_lock<std::mutex>& lock, Stream& stream, uint64_t sequence);
  bool RunBlocks(BlockRunner& runner);

  std::mutex mutex_;
  std::condition_variable changed_;
  Options options_;
  Rng rng_{1};
  std::optional<Fault> fault_;
  bool failed_ = false;
  uint64_t launches_ = 0;
  bool started_ = false;
  uintptr_t next_handle_ = 1;
  std::map<cudaStream_t, std::shared_ptr<Stream>> streams_;
  std::vector<std::shared_ptr<Stream>> default_streams_;  // by device
  std::map<cudaEvent_t, std::shared_ptr<Event>> events_;
  std::map<cudaGraph_t, std::shared_ptr<Graph>> graphs_;
  std::map<cudaGraphExec_t, std::shared_ptr<Graph>> execs_;
  OrderClock host_;  // what the host has waited for

  std::shared_mutex orders_mutex_;
  std::deque<OpOrder> orders_;  // by number - 1; only while races are checked
  std::set<int> gone_streams_;

  // The grid whose blocks the workers run; one at a time.
  std::mutex one_grid_;
  std::mutex grid_mutex_;
  std::condition_variable grid_changed_;
  Grid* grid_ = nullptr;
  std::vector<int64_t> blocks_;  // in the order of their beginning
  size_t next_block_ = 0;
  int busy_ = 0;
  int allowed_ = 0;  // workers that may still join
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_STREAM_H_
