#include "transport/nccl/nccl_engine.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/ucx/ucx_host.h"

namespace baton::transport {
namespace {

constexpr Duration kLongestSleep = Duration::Seconds(5);
constexpr int kMaxStopRounds = 2000;  // of a millisecond

bool IsMessage(const NcclArrival& arrival) {
  return arrival.event.kind == KvEventKind::kReceived ||
         arrival.event.kind == KvEventKind::kNotified;
}

absl::StatusOr<std::array<char, 16>> GpuIdentity(int gpu) {
  cudaDeviceProp properties = {};
  BATON_RETURN_IF_ERROR(
      RuntimeStatus(cudaGetDeviceProperties(&properties, gpu), "cudaGetDeviceProperties"));
  std::array<char, 16> identity = {};
  static_assert(sizeof(properties.uuid) == sizeof(identity));
  std::memcpy(identity.data(), &properties.uuid, sizeof(identity));
  return identity;
}

}  // namespace

// --- the owner's side

NcclEngine::NcclEngine(const NcclTransportOptions& options, std::shared_ptr<Clock> clock)
    : options_(options), clock_(std::move(clock)) {}

absl::StatusOr<std::unique_ptr<NcclEngine>> NcclEngine::Create(const NcclTransportOptions& options,
                                                               UcxVersion nccl,
                                                               std::shared_ptr<Clock> clock) {
  std::unique_ptr<NcclEngine> engine(new NcclEngine(options, std::move(clock)));
  BATON_RETURN_IF_ERROR(engine->Start(nccl));
  return engine;
}

absl::Status NcclEngine::Start(UcxVersion nccl) {
  memory_ = ChooseMemory(options_.gpu, options_.memory);
  if (options_.staging_bytes > 0) {
    BATON_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> memory,
                           AllocatePayloads(options_.gpu, options_.staging_bytes, memory_));
    staging_.emplace(std::move(memory), options_.staging_bytes);
  }
  command_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (command_fd_ < 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "eventfd: ", std::strerror(errno), "; raise the limit of open files (ulimit -n)"));
  }
  BATON_ASSIGN_OR_RETURN(const auto gpu, GpuIdentity(options_.gpu));
  host_id_ = HostId();
  std::optional<OneSidedCalls> one_sided = FindOneSided();
  const bool puts = one_sided.has_value();
  context_.emplace(HandoffContext{
      .options = options_,
      .channel = {.gpu = options_.gpu,
                  .max_ctas = options_.max_ctas,
                  .wake_fd = command_fd_,
                  .launches = options_.launches,
                  .one_sided = one_sided},
      .place = {.endpoint = RandomIncarnation(), .gpu = gpu, .host = host_id_, .puts = puts},
      .counters = counters_,
      .emit =
          [this](NcclArrival arrival) {
            if (IsMessage(arrival)) ++messages_waiting_;
            fresh_.push_back(std::move(arrival));
          },
      .ending = {}});
  BATON_ASSIGN_OR_RETURN(FrameListener listener, Listen(nccl));
  inbound_.emplace(*context_, std::move(listener), staging_.has_value() ? &*staging_ : nullptr);
  outbound_.emplace(*context_);
  thread_.emplace("baton-nccl", [this] { Run(); });
  return absl::OkStatus();
}

// Nothing where hand-offs of this endpoint cannot be one-sided, or are not asked to be.
std::optional<OneSidedCalls> NcclEngine::FindOneSided() const {
  if (!options_.one_sided) return std::nullopt;
  absl::StatusOr<OneSidedCalls> calls = FindOneSidedCalls();
  if (calls.ok() && memory_ != PayloadMemory::kGpu) {
    calls = absl::FailedPreconditionError("messages lie in the host's memory");
  }
  if (calls.ok()) return *calls;
  options_.log.Warning("hand-offs are not one-sided",
                       {{"why", std::string(calls.status().message())}});
  return std::nullopt;
}

absl::StatusOr<FrameListener> NcclEngine::Listen(UcxVersion nccl) {
  NcclAddress address;
  BATON_ASSIGN_OR_RETURN(interfaces_, LocalInterfaces(options_.net_devices));
  if (options_.listen_ip.empty()) {
    for (const IpInterface& interface : interfaces_) address.ips.push_back(interface.address);
  } else {
    BATON_ASSIGN_OR_RETURN(const IpAddress ip, ParseIp(options_.listen_ip));
    address.ips.push_back(ip);
  }
  BATON_ASSIGN_OR_RETURN(FrameListener listener,
                         FrameListener::Listen(options_.listen_ip, options_.listen_port,
                                               FrameListener::Guests::kHandoffs));
  address.host_id = host_id_;
  address.incarnation = context_->place.endpoint;
  address.port = listener.port();
  address_ = EncodeNcclAddress(nccl, address);
  return listener;
}

NcclEngine::~NcclEngine() { Stop(); }

void NcclEngine::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    wakeup_.reset();
  }
  if (thread_.has_value()) {
    WakeThread();
    thread_->Join();
    thread_.reset();
  }
  events_.clear();
  fresh_.clear();
  // What the GPU has not done with keeps the eventfd: it may write to it.
  const bool is_over = !context_.has_value() || context_->ending.empty();
  if (command_fd_ >= 0 && is_over) close(std::exchange(command_fd_, -1));
}

void NcclEngine::SetWakeup(std::function<void()> wakeup) {
  const std::lock_guard<std::mutex> lock(mutex_);
  wakeup_ = std::make_shared<const std::function<void()>>(std::move(wakeup));
}

void NcclEngine::Submit(NcclCommand command) {
  if (command.kind == NcclCommand::Kind::kNotify) ++notifies_in_flight_;
  bool first = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    first = commands_.empty();
    commands_.push_back(std::move(command));
  }
  if (first) WakeThread();
}

void NcclEngine::TakeEvents(size_t max, std::vector<NcclArrival>* out) {
  bool took_message = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < max && !events_.empty(); ++i) {
      const bool is_message = IsMessage(events_.front());
      took_message = took_message || is_message;
      if (is_message) --messages_waiting_;
      out->push_back(std::move(events_.front()));
      events_.pop_front();
    }
  }
  // Another Poll is due, to free what this one gives out.
  if (took_message && starved_) WakeOwner();
}

void NcclEngine::RoomFreed() {
  if (starved_) WakeThread();
}

NcclCounters NcclEngine::counters() const {
  return {.malformed_messages = counters_.malformed_messages,
          .dropped_notifies = counters_.dropped_notifies,
          .failed_receives = counters_.failed_receives,
          .peers_lost = counters_.peers_lost,
          .communicators = counters_.communicators,
          .evictions = counters_.evictions,
          .batches_sent = counters_.batches_sent,
          .batches_put = counters_.batches_put};
}

void NcclEngine::WakeOwner() {
  std::shared_ptr<const std::function<void()>> wakeup;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    wakeup = wakeup_;
  }
  if (wakeup && *wakeup) (*wakeup)();
}

void NcclEngine::WakeThread() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is awake anyway.
  [[maybe_unused]] const ssize_t written = write(command_fd_, &one, sizeof(one));
}

// --- the thread

void NcclEngine::Run() {
  (void)cudaSetDevice(options_.gpu);  // memory was allocated there
  while (RunCommands()) {
    NextLook look(clock_->Now());
    const bool moved = Step(look);
    PublishEvents();
    if (!moved) Sleep(look);
  }
  ShutDown();
}

bool NcclEngine::Step(NextLook& look) {
  // Room that is freed from here on wakes the thread.
  starved_ = true;
  bool moved = inbound_->Step(look, messages_waiting_);
  starved_ = inbound_->is_starved();
  moved = outbound_->Step(look) || moved;
  std::erase_if(context_->ending, [](const auto& channel) { return channel->drained(); });
  if (!context_->ending.empty()) look.In(kTransitionWait);
  notifies_in_flight_ = outbound_->unsent_notifies();
  return moved;
}

// False when the owner wants the thread to end.
bool NcclEngine::RunCommands() {
  std::vector<NcclCommand> commands;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return false;
    commands.swap(commands_);
  }
  for (NcclCommand& command : commands) Execute(std::move(command));
  return true;
}

void NcclEngine::Execute(NcclCommand command) {
  const Tick now = clock_->Now();
  switch (command.kind) {
    case NcclCommand::Kind::kOpen:
      return outbound_->Open(command.transfer, command.bytes, command.address,
                             WhereIs(command.address), now);
    case NcclCommand::Kind::kPost:
      return outbound_->Post(command.post, now);
    case NcclCommand::Kind::kNotify:
      return outbound_->Notify(command.transfer, command.bytes, now);
    case NcclCommand::Kind::kFlush:
      return outbound_->Flush(command.transfer);
    case NcclCommand::Kind::kRelease:
      return outbound_->Release(command.transfer);
  }
}

std::string NcclEngine::WhereIs(const NcclAddress& address) const {
  const bool by_loopback = address.host_id == host_id_ && options_.listen_ip.empty();
  return AddressText(by_loopback ? LoopbackIp() : ChooseIp(interfaces_, address), address.port);
}

void NcclEngine::PublishEvents() {
  const bool starved = starved_;
  const bool newly_starved = starved && !std::exchange(told_starved_, starved);
  told_starved_ = starved;
  if (fresh_.empty() && !newly_starved) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (NcclArrival& arrival : fresh_) events_.push_back(std::move(arrival));
  }
  fresh_.clear();
  WakeOwner();
}

void NcclEngine::Sleep(const NextLook& look) {
  std::vector<pollfd> fds = {{command_fd_, POLLIN, 0}};
  inbound_->AddFds(&fds);
  outbound_->AddFds(&fds);
  const Tick end = std::min(look.when(), look.now() + kLongestSleep);
  const int64_t wait_ms = std::max<int64_t>((end - look.now()).nanos() + 999'999, 0) / 1'000'000;
  poll(fds.data(), fds.size(), static_cast<int>(wait_ms));
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t bytes = read(command_fd_, &count, sizeof(count));
}

// Nothing that the GPU still touches may be freed. Bounded: a broken GPU cannot hold up the
// process.
void NcclEngine::ShutDown() {
  outbound_->Stop(absl::CancelledError("shutting down"));
  inbound_->Stop();
  for (int round = 0; round < kMaxStopRounds; ++round) {
    NextLook look(clock_->Now());
    Step(look);
    if (outbound_->stopped() && inbound_->stopped() && context_->ending.empty()) return;
    poll(nullptr, 0, 1);
  }
}

}  // namespace baton::transport
