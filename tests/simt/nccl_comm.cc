#include "tests/simt/nccl_comm.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/options.h"

namespace baton::simt {
namespace {

constexpr int kRetryMs = 2;

struct Hello {
  int32_t rank = 0;
  int32_t ranks = 0;
};

// In the abstract namespace: the name goes with the socket.
socklen_t NameOf(const std::string& id, int rank, sockaddr_un* address) {
  const std::string name = "baton-simt-nccl-" + id + "-" + std::to_string(rank);
  *address = {};
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path + 1, name.data(),
              std::min(name.size(), sizeof(address->sun_path) - 2));
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

bool Exchange(int fd, void* data, size_t bytes, bool send_it) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t moved =
        send_it ? send(fd, at, bytes, MSG_NOSIGNAL) : recv(fd, at, bytes, MSG_WAITALL);
    if (moved <= 0) return false;
    at += moved;
    bytes -= static_cast<size_t>(moved);
  }
  return true;
}

std::string CallText(const NcclFrame& frame) {
  const char* const names[] = {"send/recv", "all-reduce", "reduce-scatter", "all-gather",
                               "broadcast"};
  std::ostringstream out;
  out << (frame.call < 5 ? names[frame.call] : "?") << " of " << frame.bytes << " bytes, data type "
      << static_cast<int>(frame.dtype) << ", operation " << static_cast<int>(frame.reduce)
      << ", root " << frame.root;
  return out.str();
}

bool Agree(const NcclFrame& a, const NcclFrame& b) {
  return a.magic == b.magic && a.call == b.call && a.dtype == b.dtype && a.reduce == b.reduce &&
         a.root == b.root && a.bytes == b.bytes;
}

}  // namespace

NcclComm::NcclComm(std::string id, int ranks, int rank, int device)
    : id_(std::move(id)),
      ranks_(ranks),
      rank_(rank),
      device_(device),
      sockets_(static_cast<size_t>(ranks), -1),
      connector_([this] { Connect(); }) {}

NcclComm::~NcclComm() {
  State expected = State::kConnecting;
  state_.compare_exchange_strong(expected, State::kAborted);
  connector_.join();
  for (const int fd : sockets_) {
    if (fd >= 0) close(fd);
  }
}

void NcclComm::AwaitConnected() {
  while (state_ == State::kConnecting) poll(nullptr, 0, kRetryMs);
}

void NcclComm::Abort() {
  state_ = State::kAborted;
  for (const int fd : sockets_) {
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
  }
}

void NcclComm::Fail(State state, const std::string& why) {
  State expected = State::kConnecting;
  error_ = why;
  if (!state_.compare_exchange_strong(expected, state)) {
    expected = State::kReady;
    state_.compare_exchange_strong(expected, state);
  }
}

// Higher ranks connect to lower ones, in whatever order they come.
void NcclComm::Connect() {
  sockaddr_un address;
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const socklen_t length = NameOf(id_, rank_, &address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener, ranks_) != 0) {
    close(listener);
    return Fail(State::kFailed, "rank " + std::to_string(rank_) + " of this communicator exists");
  }
  bool going_on = true;
  for (int peer = 0; peer < rank_ && going_on; ++peer) going_on = ConnectTo(peer);
  for (int peer = rank_ + 1; peer < ranks_ && going_on; ++peer) going_on = Accept(listener);
  close(listener);
  for (const int fd : sockets_) {
    if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  State expected = State::kConnecting;
  if (going_on) state_.compare_exchange_strong(expected, State::kReady);
}

bool NcclComm::ConnectTo(int peer) {
  sockaddr_un address;
  const socklen_t length = NameOf(id_, peer, &address);
  while (state_ == State::kConnecting) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0) {
      close(fd);
      poll(nullptr, 0, kRetryMs);
      continue;
    }
    Hello mine{rank_, ranks_}, theirs;
    if (!Exchange(fd, &mine, sizeof(mine), true) || !Exchange(fd, &theirs, sizeof(theirs), false)) {
      close(fd);
      continue;
    }
    sockets_[static_cast<size_t>(peer)] = fd;
    if (theirs.ranks == ranks_) return true;
    Fail(State::kFailed, "rank " + std::to_string(peer) + " says that there are " +
                             std::to_string(theirs.ranks) + " ranks, this one " +
                             std::to_string(ranks_));
  }
  return false;
}

bool NcclComm::Accept(int listener) {
  while (state_ == State::kConnecting) {
    pollfd ready{listener, POLLIN, 0};
    if (poll(&ready, 1, kRetryMs) <= 0) continue;
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    Hello mine{rank_, ranks_}, theirs;
    if (!Exchange(fd, &theirs, sizeof(theirs), false) || !Exchange(fd, &mine, sizeof(mine), true)) {
      close(fd);
      continue;
    }
    if (theirs.ranks != ranks_ || theirs.rank <= rank_ || theirs.rank >= ranks_) {
      close(fd);
      Fail(State::kFailed, "rank " + std::to_string(theirs.rank) + " says that there are " +
                               std::to_string(theirs.ranks) + " ranks, this one " +
                               std::to_string(ranks_));
      return false;
    }
    sockets_[static_cast<size_t>(theirs.rank)] = fd;
    return true;
  }
  return false;
}

// --- together

bool NcclComm::SendMeeting(int peer, const NcclMeeting& mine, int fd) {
  iovec part = {const_cast<NcclMeeting*>(&mine), sizeof(mine)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  while (state_ == State::kReady) {
    // So small a message goes as a whole.
    if (sendmsg(sockets_[static_cast<size_t>(peer)], &message, MSG_NOSIGNAL) > 0) return true;
    if (errno != EAGAIN && errno != EINTR) {
      Fail(State::kPeerLost, "rank " + std::to_string(peer) + " is gone");
    }
    poll(nullptr, 0, kRetryMs);
  }
  return false;
}

bool NcclComm::ReceiveMeeting(int peer, const NcclMeeting& mine, int* fd) {
  NcclMeeting theirs;
  iovec part = {&theirs, sizeof(theirs)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  while (state_ == State::kReady) {
    const ssize_t got = recvmsg(sockets_[static_cast<size_t>(peer)], &message, MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      poll(nullptr, 0, kRetryMs);
      continue;
    }
    if (got <= 0) {
      Fail(State::kPeerLost, "rank " + std::to_string(peer) + " is gone");
      return false;
    }
    const cmsghdr* const header = CMSG_FIRSTHDR(&message);
    if (header != nullptr) std::memcpy(fd, CMSG_DATA(header), sizeof(*fd));
    if (*fd >= 0 && std::memcmp(&mine, &theirs, sizeof(mine)) == 0) return true;
    ReportFault({.kind = FaultKind::kCollective,
                 .what = "rank " + std::to_string(rank_) + " registers window " +
                         std::to_string(mine.number) + " of " + std::to_string(mine.bytes) +
                         " bytes, or makes its first one-sided call; rank " + std::to_string(peer) +
                         " does something else",
                 .kernel = {},
                 .where = {}});
    Abort();
  }
  return false;
}

bool NcclComm::Meet(const NcclMeeting& mine, int fd, std::vector<int>* fds) {
  fds->assign(static_cast<size_t>(ranks_), -1);
  bool all = true;
  for (int peer = 0; peer < ranks_ && all; ++peer) {
    all = peer == rank_ || SendMeeting(peer, mine, fd);
  }
  for (int peer = 0; peer < ranks_ && all; ++peer) {
    int& got = (*fds)[static_cast<size_t>(peer)];
    if (peer == rank_) got = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    all = peer == rank_ || ReceiveMeeting(peer, mine, &got);
  }
  if (all) return true;
  for (const int got : *fds) {
    if (got >= 0) close(got);
  }
  return false;
}

bool NcclComm::Enter(const void* operation) {
  const void* none = nullptr;
  return running_.compare_exchange_strong(none, operation) || none == operation;
}

namespace {

std::mutex places_mutex;
std::map<int, int> places_taken;  // by device; guarded by places_mutex

}  // namespace

bool NcclComm::TakePlace() {
  const auto room = GetOptions().nccl_room;
  const size_t device = static_cast<size_t>(device_);
  const int most = device < room.size() ? room[device] : 0;
  const std::lock_guard<std::mutex> lock(places_mutex);
  int& taken = places_taken[device_];
  if (most > 0 && taken >= most) return false;
  ++taken;
  return true;
}

int NcclComm::PlacesTaken(int device) {
  const std::lock_guard<std::mutex> lock(places_mutex);
  return places_taken[device];
}

void NcclComm::LeavePlace() {
  const std::lock_guard<std::mutex> lock(places_mutex);
  --places_taken[device_];
}

bool NcclComm::Send(NcclTransfer& t) {
  const size_t total = sizeof(NcclFrame) + t.frame.bytes;
  if (t.peer == rank_) {
    if (t.done == total) return true;
    std::vector<char> message(total);
    std::memcpy(message.data(), &t.frame, sizeof(NcclFrame));
    std::memcpy(message.data() + sizeof(NcclFrame), t.data, t.frame.bytes);
    to_self_.push_back(std::move(message));
    t.done = total;
    return true;
  }
  while (t.done < total) {
    const bool in_frame = t.done < sizeof(NcclFrame);
    const char* const from = in_frame ? reinterpret_cast<const char*>(&t.frame) + t.done
                                      : t.data + (t.done - sizeof(NcclFrame));
    const size_t left = (in_frame ? sizeof(NcclFrame) : total) - t.done;
    const ssize_t moved =
        send(sockets_[static_cast<size_t>(t.peer)], from, left, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (moved < 0) {
      if (errno != EAGAIN && errno != EINTR) {
        Fail(State::kPeerLost, "rank " + std::to_string(t.peer) + " is gone");
      }
      return false;
    }
    t.done += static_cast<size_t>(moved);
  }
  return true;
}

bool NcclComm::Receive(NcclTransfer& t) {
  const size_t total = sizeof(NcclFrame) + t.frame.bytes;
  const auto check = [&] {
    if (Agree(t.frame, t.received)) return true;
    ReportFault({.kind = FaultKind::kCollective,
                 .what = "rank " + std::to_string(rank_) + " expects of rank " +
                         std::to_string(t.peer) + " a message of " + CallText(t.frame) +
                         "; it sent one of " + CallText(t.received),
                 .kernel = {},
                 .where = {}});
    Abort();
    return false;
  };
  if (t.peer == rank_) {
    if (t.done == total) return true;
    if (to_self_.empty()) return false;
    std::memcpy(&t.received, to_self_.front().data(), sizeof(NcclFrame));
    if (!check()) return false;
    std::memcpy(t.data, to_self_.front().data() + sizeof(NcclFrame), t.frame.bytes);
    to_self_.pop_front();
    t.done = total;
    return true;
  }
  while (t.done < total) {
    const bool in_frame = t.done < sizeof(NcclFrame);
    char* const to = in_frame ? reinterpret_cast<char*>(&t.received) + t.done
                              : t.data + (t.done - sizeof(NcclFrame));
    const size_t left = (in_frame ? sizeof(NcclFrame) : total) - t.done;
    const ssize_t moved = recv(sockets_[static_cast<size_t>(t.peer)], to, left, MSG_DONTWAIT);
    if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR)) {
      Fail(State::kPeerLost, "rank " + std::to_string(t.peer) + " is gone");
      return false;
    }
    if (moved < 0) return false;
    t.done += static_cast<size_t>(moved);
    if (in_frame && t.done == sizeof(NcclFrame) && !check()) return false;
  }
  return true;
}

bool NcclComm::Progress(std::vector<NcclTransfer>& sends, std::vector<NcclTransfer>& receives) {
  if (state_ == State::kAborted) return true;
  bool all = true;
  // Of one peer the first that is not done stops those behind it.
  std::vector<bool> blocked(static_cast<size_t>(ranks_), false);
  for (NcclTransfer& t : sends) {
    if (blocked[static_cast<size_t>(t.peer)] || Send(t)) continue;
    blocked[static_cast<size_t>(t.peer)] = true;
  }
  for (size_t peer = 0; peer < blocked.size(); ++peer) all = all && !blocked[peer];
  std::fill(blocked.begin(), blocked.end(), false);
  for (NcclTransfer& t : receives) {
    if (blocked[static_cast<size_t>(t.peer)] || Receive(t)) continue;
    blocked[static_cast<size_t>(t.peer)] = true;
  }
  for (size_t peer = 0; peer < blocked.size(); ++peer) all = all && !blocked[peer];
  return all || state_ == State::kAborted;
}

}  // namespace baton::simt
