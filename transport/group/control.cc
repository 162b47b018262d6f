#include "transport/group/control.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/group/exchange.h"

namespace baton::transport {
namespace {

constexpr Duration kLongestSleep = Duration::Seconds(5);
constexpr Duration kGoodByeLimit = Duration::Millis(500);
constexpr Duration kCatchUpLimit = Duration::Millis(500);
// A peer that reads nothing for so long has its deadline behind it.
constexpr size_t kMaxUnsentBytes = size_t{4} << 20;
constexpr size_t kMaxReasonBytes = 4096;

std::string EncodeBreak(const GroupFailure& failure, uint64_t last_good_call,
                        bool moves_on = false) {
  const std::string reason(failure.status.message().substr(0, kMaxReasonBytes));
  return PayloadWriter()
      .Put(last_good_call)
      .Put(static_cast<uint32_t>(failure.status.raw_code()))
      .PutText(reason)
      .PutRanks(failure.lost_ranks)
      .Put(static_cast<uint8_t>(moves_on))
      .bytes();
}

}  // namespace

GroupControl::GroupControl(std::shared_ptr<GroupState> state, std::map<int, FrameSocket> sockets,
                           std::shared_ptr<Clock> clock)
    : state_(std::move(state)), clock_(std::move(clock)), sockets_(std::move(sockets)) {}

absl::StatusOr<std::unique_ptr<GroupControl>> GroupControl::Start(
    std::shared_ptr<GroupState> state, std::map<int, FrameSocket> sockets,
    std::shared_ptr<Clock> clock) {
  std::unique_ptr<GroupControl> control(
      new GroupControl(std::move(state), std::move(sockets), std::move(clock)));
  BATON_RETURN_IF_ERROR(control->Start());
  return control;
}

absl::Status GroupControl::Start() {
  broken_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  outbox_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (broken_fd_ < 0 || outbox_fd_ < 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "eventfd: ", std::strerror(errno), "; raise the limit of open files (ulimit -n)"));
  }
  thread_.emplace("baton-group", [this] { Run(); });
  return absl::OkStatus();
}

GroupControl::~GroupControl() {
  state_->SetWakeup(nullptr);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  if (thread_.has_value()) {
    Signal(outbox_fd_);
    thread_->Join();
  }
  for (const int fd : {broken_fd_, outbox_fd_}) {
    if (fd >= 0) close(fd);
  }
}

void GroupControl::Signal(int fd) {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then it is readable anyway.
  [[maybe_unused]] const ssize_t written = write(fd, &one, sizeof(one));
}

void GroupControl::SendToAll(FrameKind kind, const std::string& payload, std::vector<int> accused) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    outbox_.push_back({{kind, payload}, std::move(accused)});
  }
  Signal(outbox_fd_);
}

void GroupControl::Break(const GroupFailure& failure, uint64_t last_good_call) {
  if (!state_->Break(failure, last_good_call)) return;
  SendToAll(FrameKind::kBreak, EncodeBreak(failure, last_good_call), failure.lost_ranks);
  Signal(broken_fd_);
}

void GroupControl::Ring(uint64_t call) {
  SendToAll(FrameKind::kRing, PayloadWriter().Put(call).bytes());
}

void GroupControl::TellWaiting(uint64_t call, const std::vector<int>& ranks) {
  SendToAll(FrameKind::kWaiting, PayloadWriter().Put(call).PutRanks(ranks).bytes());
}

void GroupControl::MoveOn() {
  std::lock_guard<std::mutex> lock(mutex_);
  moves_on_ = true;
}

bool GroupControl::CatchUp() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t round = ++wanted_rounds_;
  Signal(outbox_fd_);
  return served_all_.wait_for(lock, std::chrono::nanoseconds(kCatchUpLimit.nanos()),
                              [&] { return served_rounds_ >= round; });
}

// --- the thread

void GroupControl::Run() {
  uint64_t wanted_rounds = 0;
  while (TakeOutbox(&wanted_rounds)) {
    for (auto& [rank, socket] : sockets_) {
      if (socket.is_open()) Serve(rank, &socket);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      served_rounds_ = wanted_rounds;
    }
    served_all_.notify_one();
    Sleep();
  }
  SayGoodBye();
}

// False when the group is being left.
bool GroupControl::TakeOutbox(uint64_t* wanted_rounds) {
  std::vector<Message> messages;
  bool goes_on = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    messages.swap(outbox_);
    goes_on = !stopping_;
    *wanted_rounds = wanted_rounds_;
  }
  for (const auto& [frame, accused] : messages) {
    for (auto& [rank, socket] : sockets_) {
      if (socket.unsent_bytes() >= kMaxUnsentBytes) continue;
      socket.Queue(frame.kind, frame.payload);
      const bool is_told = std::find(accused.begin(), accused.end(), rank) != accused.end();
      accused_[rank] = accused_[rank] || is_told;
    }
  }
  return goes_on;
}

// Where another rank has said so: each for itself has to know that they were told.
void GroupControl::Accuse(const std::vector<int>& ranks, const std::string& payload) {
  for (const int rank : ranks) {
    const auto socket = sockets_.find(rank);
    if (socket == sockets_.end() || std::exchange(accused_[rank], true)) continue;
    if (socket->second.is_open()) socket->second.Queue(FrameKind::kBreak, payload);
  }
}

void GroupControl::Serve(int rank, FrameSocket* socket) {
  const absl::Status status = socket->Pump();
  // Bounded by what one Pump takes in.
  for (std::optional<Frame> frame = socket->Next(); frame.has_value(); frame = socket->Next()) {
    Handle(rank, *frame);
  }
  if (status.ok()) {
    if (accused_[rank] && socket->is_acknowledged()) state_->Gone(rank);
    return;
  }
  if (socket->is_ended() && !moved_on_[rank]) state_->Gone(rank);
  socket->Close();
  if (said_broken_[rank]) return;
  // The others see it for themselves, unless only the way between these two is broken.
  Break({absl::UnavailableError(absl::StrCat("lost ", state_->Name(rank), ": ", status.message(),
                                             "; its process has ended or cannot be reached")),
         {rank}},
        0);
}

void GroupControl::Handle(int rank, const Frame& frame) {
  PayloadReader in(frame.payload);
  const uint64_t call = in.Get<uint64_t>();
  switch (frame.kind) {
    case FrameKind::kBreak: {
      const auto code = static_cast<absl::StatusCode>(in.Get<uint32_t>());
      const std::string reason = in.GetText();
      GroupFailure failure{absl::Status(code, reason), in.GetRanks()};
      const bool moves_on = in.Get<uint8_t>() != 0;
      if (!in.ok() || failure.status.ok()) return;
      said_broken_[rank] = true;
      moved_on_[rank] = moves_on;
      Accuse(failure.lost_ranks, EncodeBreak(failure, call));
      if (state_->Break(std::move(failure), call)) Signal(broken_fd_);
      return;
    }
    case FrameKind::kRing:
      if (in.ok()) state_->PeerAnnounced(call);
      return;
    case FrameKind::kWaiting: {
      std::vector<int> ranks = in.GetRanks();
      std::erase_if(ranks, [this](int r) { return r < 0 || !sockets_.contains(r); });
      if (!in.ok()) return;
      state_->PeerReported(rank, call, std::move(ranks), clock_->Now());
      state_->PeerAnnounced(call);
      return;
    }
    default:  // of the formation, late
      return;
  }
}

void GroupControl::Sleep() {
  std::vector<pollfd> fds = {{outbox_fd_, POLLIN, 0}};
  for (const auto& [rank, socket] : sockets_) {
    if (!socket.is_open()) continue;
    const short events = static_cast<short>(POLLIN | (socket.wants_write() ? POLLOUT : 0));
    fds.push_back({socket.fd(), events, 0});
  }
  poll(fds.data(), fds.size(), static_cast<int>(kLongestSleep.millis()));
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t bytes = read(outbox_fd_, &count, sizeof(count));
}

// Bounded: a peer that does not read is left without.
void GroupControl::SayGoodBye() {
  bool moves_on = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    moves_on = moves_on_;
  }
  const GroupFailure left = moves_on ? GroupFailure{MovedOnError(*state_), {}}
                                     : GroupFailure{LeftError(*state_), {state_->rank()}};
  const Tick end = clock_->Now() + kGoodByeLimit;
  for (auto& [rank, socket] : sockets_) {
    if (!socket.is_open()) continue;
    socket.Queue(FrameKind::kBreak, EncodeBreak(left, state_->entered(), moves_on));
  }
  bool unsent = true;
  while (unsent && clock_->Now() < end) {
    unsent = false;
    std::vector<pollfd> fds;
    for (auto& [rank, socket] : sockets_) {
      if (!socket.is_open()) continue;
      if (!socket.Pump().ok()) socket.Close();
      if (socket.is_open() && socket.wants_write()) fds.push_back({socket.fd(), POLLOUT, 0});
    }
    unsent = !fds.empty();
    if (unsent) poll(fds.data(), fds.size(), 20);
  }
  sockets_.clear();
}

}  // namespace baton::transport
