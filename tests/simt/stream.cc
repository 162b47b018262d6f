#include "tests/simt/stream.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "base/check.h"
#include "tests/simt/memory.h"

namespace baton::simt {
namespace {

constexpr int kHelpers = 3;  // threads beside the device's own; Options::workers - 1 of them run
constexpr std::chrono::microseconds kPause(50);
constexpr int kMostDevices = 64;
constexpr int64_t kWorthHelp = 4096;  // threads of a grid that are worth waking another OS thread

void Join(OrderClock& into, const OrderClock& other) {
  for (const auto& [stream, sequence] : other) {
    uint64_t& own = into[stream];
    own = std::max(own, sequence);
  }
}

}  // namespace

void SetOptions(const Options& options) { Runtime::Get().SetOptions(options); }
Options GetOptions() { return Runtime::Get().options(); }
std::optional<Fault> TakeFault() { return Runtime::Get().TakeFault(); }
void ReportFault(const Fault& fault) { Runtime::Get().Report(fault); }
uint64_t LaunchCount() { return Runtime::Get().launches(); }
bool IsOrderedBehind(uint32_t op, uint32_t earlier) {
  return Runtime::Get().IsOrderedBehind(op, earlier);
}

// Of a program that sets no options.
Runtime::Runtime() {
  const char* const devices = std::getenv("SIMT_DEVICES");
  if (devices != nullptr) options_.devices = std::clamp(std::atoi(devices), 0, kMostDevices);
  const char* const nccl = std::getenv("SIMT_NCCL");
  if (nccl != nullptr) options_.nccl_version = std::atoi(nccl);
}

Runtime& Runtime::Get() {
  static Runtime* const runtime = new Runtime;
  return *runtime;
}

int& Runtime::current_device() {
  static thread_local int device = 0;
  return device;
}

// --- options and faults

void Runtime::SetOptions(const Options& options) {
  const std::lock_guard<std::mutex> lock(mutex_);
  options_ = options;
  rng_ = Rng(options.seed);
  // What is done orders nothing any more.
  const bool is_idle = std::all_of(streams_.begin(), streams_.end(),
                                   [](const auto& entry) { return entry.second->queue.empty(); });
  if (!is_idle) return;
  const std::unique_lock<std::shared_mutex> orders_lock(orders_mutex_);
  if (!orders_.empty()) Memory::Get().ClearWordTable();
  orders_.clear();
  gone_streams_.clear();
}

Options Runtime::options() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return options_;
}

uint64_t Runtime::launches() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return launches_;
}

uint64_t Runtime::NextSeed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return rng_.Next();
}

void Runtime::Report(const Fault& fault) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_) {
    fault_ = fault;
    std::fprintf(stderr, "simt: %s\n", fault.Text().c_str());
  }
  failed_ = true;
  changed_.notify_all();
}

std::optional<Fault> Runtime::TakeFault() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] {
    return std::all_of(streams_.begin(), streams_.end(),
                       [](const auto& entry) { return entry.second->queue.empty(); });
  });
  failed_ = false;
  return std::exchange(fault_, std::nullopt);
}

cudaError_t Runtime::failure() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failed_ ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t Runtime::Misuse(const std::string& what, cudaError_t error) {
  Report({.kind = FaultKind::kRuntime, .what = what, .kernel = {}, .where = {}});
  return error;
}

// --- streams

// Also those of devices that have come with newer options.
void Runtime::StartThreads() {
  for (int device = static_cast<int>(default_streams_.size()); device < options_.devices;
       ++device) {
    auto stream = std::make_shared<Stream>();
    stream->number = static_cast<int>(next_handle_++);
    stream->device = device;
    default_streams_.push_back(stream);
    streams_[reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(stream->number))] = stream;
    std::thread([this, device] { RunDevice(device); }).detach();
  }
  if (std::exchange(started_, true)) return;
  for (int i = 0; i < kHelpers; ++i) std::thread([this] { RunWorker(); }).detach();
}

std::shared_ptr<Runtime::Stream> Runtime::Find(cudaStream_t stream) {
  StartThreads();
  if (stream == nullptr) return default_streams_[static_cast<size_t>(current_device())];
  const auto it = streams_.find(stream);
  return it == streams_.end() ? nullptr : it->second;
}

cudaError_t Runtime::CreateStream(cudaStream_t* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  StartThreads();
  auto stream = std::make_shared<Stream>();
  stream->number = static_cast<int>(next_handle_++);
  stream->device = current_device();
  *out = reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(stream->number));
  streams_[*out] = stream;
  return cudaSuccess;
}

cudaError_t Runtime::DestroyStream(cudaStream_t stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
  AwaitDone(lock, *found, found->enqueued);
  // All it did is behind the host now, and so in front of all that comes.
  host_.erase(found->number);
  {
    const std::unique_lock<std::shared_mutex> orders_lock(orders_mutex_);
    gone_streams_.insert(found->number);
  }
  streams_.erase(stream);
  return cudaSuccess;
}

void Runtime::Push(Stream& stream, Op op) {
  op.sequence = ++stream.enqueued;
  Join(stream.clock, host_);
  if (op.waits_for != nullptr) Join(stream.clock, op.waits_for->clock);
  stream.clock[stream.number] = op.sequence;
  if (op.reaches != nullptr) op.reaches->clock = stream.clock;
  if (options_.check_races) {
    const std::unique_lock<std::shared_mutex> lock(orders_mutex_);
    orders_.push_back({stream.number, op.sequence, stream.clock});
    op.id = static_cast<uint32_t>(orders_.size());
  }
  stream.queue.push_back(std::move(op));
  changed_.notify_all();
}

cudaError_t Runtime::Enqueue(cudaStream_t stream, Work work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failed_) return cudaErrorLaunchFailure;
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->capture != nullptr) {
    found->capture->nodes.push_back({std::move(work), found->captured});
    found->captured = {found->capture->nodes.size() - 1};
    return cudaSuccess;
  }
  ++launches_;
  Op op;
  op.work = std::move(work);
  Push(*found, std::move(op));
  return cudaSuccess;
}

void Runtime::AwaitDone(std::unique_lock<std::mutex>& lock, Stream& stream, uint64_t sequence) {
  changed_.wait(lock, [&] { return stream.done >= sequence; });
  uint64_t& known = host_[stream.number];
  known = std::max(known, sequence);
}

cudaError_t Runtime::Synchronize(cudaStream_t stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  const uint64_t last = found->enqueued;
  AwaitDone(lock, *found, last);
  // What that was behind is done too.
  if (last == found->enqueued) Join(host_, found->clock);
  return failed_ ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t Runtime::SynchronizeDevice() {
  std::unique_lock<std::mutex> lock(mutex_);
  StartThreads();
  const int device = current_device();
  std::vector<std::shared_ptr<Stream>> all;
  for (const auto& [handle, stream] : streams_) {
    if (stream->device == device) all.push_back(stream);
  }
  for (const auto& stream : all) AwaitDone(lock, *stream, stream->enqueued);
  return failed_ ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t Runtime::Query(cudaStream_t stream) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (failed_) return cudaErrorLaunchFailure;
  if (found->done < found->enqueued) return cudaErrorNotReady;
  AwaitDone(lock, *found, found->enqueued);
  return cudaSuccess;
}

bool Runtime::IsCapturing(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<Stream> found = Find(stream);
  return found != nullptr && found->capture != nullptr;
}

// --- the threads of the devices

bool Runtime::IsReady(const Stream& stream) const {
  if (stream.queue.empty()) return false;
  const Op& op = stream.queue.front();
  return op.waits_for == nullptr || op.waits_for->reached >= op.times || failed_;
}

void Runtime::RunDevice(int device) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    std::vector<std::shared_ptr<Stream>> ready;
    for (const auto& [handle, stream] : streams_) {
      if (stream->device == device && IsReady(*stream)) ready.push_back(stream);
    }
    if (ready.empty()) {
      changed_.wait(lock);
      continue;
    }
    const std::shared_ptr<Stream> stream = ready[rng_.Below(ready.size())];
    Op& op = stream->queue.front();
    if (op.work && !failed_) {
      const uint32_t id = op.id;
      lock.unlock();
      const bool is_done = op.work(id);  // nobody else takes it from the front
      lock.lock();
      if (!is_done && !failed_) {
        // It waits for another device or process; somebody else's turn, or a pause.
        if (ready.size() == 1) changed_.wait_for(lock, kPause);
        continue;
      }
    }
    Op& done = stream->queue.front();
    if (done.reaches != nullptr) {
      done.reaches->reached = std::max(done.reaches->reached, done.times);
      done.reaches->at = std::chrono::steady_clock::now();
    }
    stream->done = done.sequence;
    stream->queue.pop_front();
    changed_.notify_all();
  }
}

bool Runtime::RunBlocks(BlockRunner& runner) {
  while (true) {
    Grid* grid = nullptr;
    int64_t block = 0;
    {
      const std::lock_guard<std::mutex> lock(grid_mutex_);
      if (grid_ == nullptr || next_block_ == blocks_.size() || grid_->stop) return false;
      grid = grid_;
      block = blocks_[next_block_++];
    }
    runner.Run(*grid, block);
  }
}

void Runtime::RunWorker() {
  std::unique_ptr<BlockRunner> runner;
  std::unique_lock<std::mutex> lock(grid_mutex_);
  while (true) {
    grid_changed_.wait(lock, [this] {
      return grid_ != nullptr && allowed_ > 0 && next_block_ < blocks_.size() && !grid_->stop;
    });
    --allowed_;
    ++busy_;
    lock.unlock();
    if (runner == nullptr) runner = std::make_unique<BlockRunner>();
    RunBlocks(*runner);
    lock.lock();
    --busy_;
    grid_changed_.notify_all();
  }
}

void Runtime::RunGrid(Grid& grid) {
  static thread_local BlockRunner runner;
  const Options options = this->options();
  const std::lock_guard<std::mutex> one(one_grid_);
  const int64_t count = int64_t{1} * grid.blocks[0] * grid.blocks[1] * grid.blocks[2];
  Rng rng(grid.seed);
  std::unique_lock<std::mutex> lock(grid_mutex_);
  blocks_.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    // Shuffled: blocks begin in any order.
    const size_t at = rng.Below(i + 1);
    blocks_[i] = blocks_[at];
    blocks_[at] = static_cast<int64_t>(i);
  }
  next_block_ = 0;
  grid_ = &grid;
  allowed_ = count * grid.threads < kWorthHelp ? 0 : options.workers - 1;
  if (allowed_ > 0) grid_changed_.notify_all();
  lock.unlock();
  RunBlocks(runner);
  lock.lock();
  grid_changed_.wait(lock, [this] { return busy_ == 0; });
  grid_ = nullptr;
}

bool Runtime::IsOrderedBehind(uint32_t op, uint32_t earlier) {
  const std::shared_lock<std::shared_mutex> lock(orders_mutex_);
  const OpOrder& before = orders_[earlier - 1];
  if (gone_streams_.count(before.stream) > 0) return true;
  const OrderClock& clock = orders_[op - 1].clock;
  const auto it = clock.find(before.stream);
  return it != clock.end() && it->second >= before.sequence;
}

// --- events

std::shared_ptr<Runtime::Event> Runtime::Find(cudaEvent_t event) {
  const auto it = events_.find(event);
  return it == events_.end() ? nullptr : it->second;
}

cudaError_t Runtime::CreateEvent(cudaEvent_t* out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *out = reinterpret_cast<cudaEvent_t>(next_handle_++);
  events_[*out] = std::make_shared<Event>();
  return cudaSuccess;
}

cudaError_t Runtime::DestroyEvent(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return events_.erase(event) > 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t Runtime::Record(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failed_) return cudaErrorLaunchFailure;
  const std::shared_ptr<Stream> found = Find(stream);
  const std::shared_ptr<Event> target = Find(event);
  if (found == nullptr || target == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->capture != nullptr) {
    target->capture = found->capture;
    target->captured = found->captured;
    return cudaSuccess;
  }
  target->capture = nullptr;
  Op op;
  op.reaches = target;
  op.times = ++target->recorded;
  Push(*found, std::move(op));
  return cudaSuccess;
}

cudaError_t Runtime::Await(cudaStream_t stream, cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failed_) return cudaErrorLaunchFailure;
  const std::shared_ptr<Stream> found = Find(stream);
  const std::shared_ptr<Event> target = Find(event);
  if (found == nullptr || target == nullptr) return cudaErrorInvalidResourceHandle;
  if (target->capture != nullptr) {
    // The stream joins the capture.
    if (found->capture != nullptr && found->capture != target->capture) {
      return cudaErrorStreamCaptureMerge;
    }
    found->capture = target->capture;
    for (const size_t node : target->captured) {
      if (std::find(found->captured.begin(), found->captured.end(), node) ==
          found->captured.end()) {
        found->captured.push_back(node);
      }
    }
    return cudaSuccess;
  }
  if (found->capture != nullptr) return cudaErrorStreamCaptureIsolation;
  Op op;
  op.waits_for = target;
  op.times = target->recorded;
  Push(*found, std::move(op));
  return cudaSuccess;
}

cudaError_t Runtime::Synchronize(cudaEvent_t event) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::shared_ptr<Event> found = Find(event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  const uint64_t times = found->recorded;
  changed_.wait(lock, [&] { return found->reached >= times; });
  Join(host_, found->clock);
  return failed_ ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t Runtime::Query(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<Event> found = Find(event);
  if (found == nullptr) return cudaErrorInvalidResourceHandle;
  if (failed_) return cudaErrorLaunchFailure;
  if (found->reached < found->recorded) return cudaErrorNotReady;
  Join(host_, found->clock);
  return cudaSuccess;
}

cudaError_t Runtime::ElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::shared_ptr<Event> from = Find(start), to = Find(end);
  if (from == nullptr || to == nullptr) return cudaErrorInvalidResourceHandle;
  if (from->reached < from->recorded || to->reached < to->recorded) return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}

}  // namespace baton::simt
