#include "transport/group/frame_socket.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/host_port.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

constexpr uint32_t kMagic = 0x31475442;  // "BTG1"
constexpr size_t kHeaderBytes = 12;
constexpr size_t kMaxVisitors = 2048;
constexpr Duration kPatience = Duration::Seconds(5);  // with a silent visitor
constexpr size_t kReadBytes = 65536;

struct SocketName {
  sockaddr_storage storage = {};
  socklen_t length = sizeof(sockaddr_storage);
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

std::string ToText(const SocketName& name, bool with_port) {
  char ip[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
  SocketName copy = name;
  getnameinfo(copy.get(), copy.length, ip, sizeof(ip), port, sizeof(port),
              NI_NUMERICHOST | NI_NUMERICSERV);
  return with_port ? absl::StrCat(ip, ":", port) : std::string(ip);
}

// An end of the connection that the kernel alone sees (a host that is gone) is noticed by probes.
void SetOptions(int fd) {
  const int on = 1, idle_s = 5, interval_s = 1, probes = 5;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

absl::Status Ended(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::StatusOr<SocketName> Resolve(const std::string& address) {
  const std::optional<HostPort> parts = SplitHostPort(address);
  if (!parts.has_value() || address.front() == ':' || parts->port.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", address, "' is no address; write host:port, e.g. 10.0.0.5:7000 or [fd00::5]:7000"));
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* raw = nullptr;
  const int error = getaddrinfo(parts->host.c_str(), parts->port.c_str(), &hints, &raw);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot resolve '", address, "': ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(raw, &freeaddrinfo);
  SocketName name;
  std::memcpy(&name.storage, list->ai_addr, list->ai_addrlen);
  name.length = list->ai_addrlen;
  return name;
}

}  // namespace

FrameSocket::FrameSocket(int fd, size_t max_payload_bytes)
    : fd_(fd), max_payload_bytes_(max_payload_bytes) {
  SetOptions(fd);
}

FrameSocket::FrameSocket(FrameSocket&& other) noexcept { *this = std::move(other); }

FrameSocket& FrameSocket::operator=(FrameSocket&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd_ = std::exchange(other.fd_, -1);
  max_payload_bytes_ = other.max_payload_bytes_;
  is_connecting_ = other.is_connecting_;
  is_ended_ = other.is_ended_;
  in_ = std::move(other.in_);
  out_ = std::move(other.out_);
  out_at_ = std::exchange(other.out_at_, 0);
  frames_ = std::move(other.frames_);
  return *this;
}

FrameSocket::~FrameSocket() { Close(); }

void FrameSocket::Close() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

absl::StatusOr<FrameSocket> FrameSocket::Connect(const std::string& address) {
  BATON_ASSIGN_OR_RETURN(SocketName name, Resolve(address));
  const int fd = socket(name.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Ended("socket");
  FrameSocket out(fd, kMaxFrameBytes);
  if (connect(fd, name.get(), name.length) == 0) return out;
  if (errno != EINPROGRESS) return Ended("connect");
  out.is_connecting_ = true;
  return out;
}

std::string FrameSocket::LocalIp() const {
  SocketName name;
  if (getsockname(fd_, name.get(), &name.length) != 0) return "";
  return ToText(name, false);
}

std::string FrameSocket::PeerAddress() const {
  SocketName name;
  if (getpeername(fd_, name.get(), &name.length) != 0) return "";
  return ToText(name, true);
}

bool FrameSocket::is_acknowledged() const {
  int bytes = 0;
  return is_open() && !wants_write() && ioctl(fd_, SIOCOUTQ, &bytes) == 0 && bytes == 0;
}

void FrameSocket::Queue(FrameKind kind, std::string_view payload) {
  BATON_CHECK(payload.size() <= kMaxFrameBytes);
  PayloadWriter header;
  header.Put(kMagic).Put(static_cast<uint32_t>(payload.size())).Put(static_cast<uint32_t>(kind));
  out_ += header.bytes();
  out_ += payload;
}

absl::Status FrameSocket::Pump() {
  if (fd_ < 0) return absl::UnavailableError("closed");
  absl::Status status = Send();
  if (is_connecting_) return status;
  const absl::Status received = Receive();
  if (status.ok()) status = received;
  return status;
}

absl::Status FrameSocket::Send() {
  if (is_connecting_) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
      errno = error;
      return Ended("connect");
    }
    SocketName name;
    if (getpeername(fd_, name.get(), &name.length) != 0) return absl::OkStatus();  // not yet
    is_connecting_ = false;
  }
  while (out_at_ < out_.size()) {
    const ssize_t sent = send(fd_, out_.data() + out_at_, out_.size() - out_at_, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return absl::OkStatus();
    if (sent < 0) {
      is_ended_ = errno == ECONNRESET || errno == EPIPE;
      return Ended("send");
    }
    out_at_ += static_cast<size_t>(sent);
  }
  out_.clear();
  out_at_ = 0;
  return absl::OkStatus();
}

absl::Status FrameSocket::Receive() {
  char buffer[kReadBytes];
  // Bounded: what comes faster than it is read has to wait for the next Pump.
  for (int round = 0; round < 64; ++round) {
    const ssize_t got = recv(fd_, buffer, sizeof(buffer), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return absl::OkStatus();
    if (got <= 0) is_ended_ = got == 0 || errno == ECONNRESET;
    if (got < 0) return Ended("recv");
    if (got == 0) return absl::UnavailableError("the other side closed the connection");
    in_.append(buffer, static_cast<size_t>(got));
    BATON_RETURN_IF_ERROR(Parse());
  }
  return absl::OkStatus();
}

absl::Status FrameSocket::Parse() {
  size_t at = 0;
  while (in_.size() - at >= 4) {
    PayloadReader header(std::string_view(in_).substr(at, std::min(kHeaderBytes, in_.size() - at)));
    const uint32_t magic = header.Get<uint32_t>(), bytes = header.Get<uint32_t>(),
                   kind = header.Get<uint32_t>();
    if (magic != kMagic) return absl::InvalidArgumentError("what came is no frame of a group");
    if (in_.size() - at < kHeaderBytes) break;
    if (bytes > max_payload_bytes_ || kind < static_cast<uint32_t>(FrameKind::kJoin) ||
        kind > static_cast<uint32_t>(FrameKind::kHandoff)) {
      return absl::InvalidArgumentError(absl::StrCat("a frame of kind ", kind, " with ", bytes,
                                                     " bytes came; at most ", max_payload_bytes_,
                                                     " are allowed"));
    }
    if (in_.size() - at - kHeaderBytes < bytes) break;
    frames_.push_back({static_cast<FrameKind>(kind), in_.substr(at + kHeaderBytes, bytes)});
    at += kHeaderBytes + bytes;
  }
  in_.erase(0, at);
  return absl::OkStatus();
}

std::optional<Frame> FrameSocket::Next() {
  if (frames_.empty()) return std::nullopt;
  Frame frame = std::move(frames_.front());
  frames_.pop_front();
  return frame;
}

absl::StatusOr<FrameListener> FrameListener::Listen(const std::string& ip, uint16_t port,
                                                    Guests guests) {
  const std::string shown = ip.empty() ? "0.0.0.0" : ip;
  absl::StatusOr<SocketName> name = Resolve(absl::StrCat("[", shown, "]:", port));
  int fd = -1;
  if (name.ok()) {
    fd = socket(name->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  }
  if (fd < 0 || bind(fd, name->get(), name->length) != 0 || listen(fd, 1024) != 0) {
    const std::string why = name.ok() ? std::strerror(errno) : std::string(name.status().message());
    if (fd >= 0) close(fd);
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot listen for the ", guests == Guests::kRanks ? "group's ranks" : "hand-offs' senders",
        " on ", shown, ":", port, ": ", why,
        "; set the listening address to one of this host and the port to a free one (0: any)"));
  }
  SocketName bound;
  getsockname(fd, bound.get(), &bound.length);
  const uint16_t bound_port =
      bound.storage.ss_family == AF_INET6
          ? ntohs(reinterpret_cast<const sockaddr_in6*>(&bound.storage)->sin6_port)
          : ntohs(reinterpret_cast<const sockaddr_in*>(&bound.storage)->sin_port);
  return FrameListener(fd, bound_port, guests);
}

FrameListener::FrameListener(FrameListener&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      port_(other.port_),
      guests_(other.guests_),
      visitors_(std::move(other.visitors_)) {}

FrameListener::~FrameListener() {
  if (fd_ >= 0) close(fd_);
}

bool FrameListener::IsBeginning(FrameKind kind) const {
  if (guests_ == Guests::kHandoffs) return kind == FrameKind::kHandoff;
  return kind == FrameKind::kJoin || kind == FrameKind::kKnock || kind == FrameKind::kPeer;
}

void FrameListener::Pump(Tick now, std::string* trouble) {
  // Bounded: who is not accepted now waits in the kernel's queue.
  while (visitors_.size() < kMaxVisitors) {
    const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) break;
    visitors_.push_back({.socket = FrameSocket(fd, kMaxHandshakeBytes), .first = {}, .since = now});
  }
  std::erase_if(visitors_, [&](Visitor& visitor) {
    absl::Status status = visitor.socket.Pump();
    if (!visitor.has_frame) {
      std::optional<Frame> frame = visitor.socket.Next();
      visitor.has_frame = frame.has_value();
      if (frame.has_value()) visitor.first = *std::move(frame);
      if (visitor.has_frame && !IsBeginning(visitor.first.kind)) {
        status = absl::InvalidArgumentError("its first frame is none to begin with");
      }
      if (status.ok() && !visitor.has_frame && now - visitor.since > kPatience) {
        status = absl::DeadlineExceededError("it sent nothing");
      }
    }
    if (status.ok()) return false;
    const bool is_news = !visitor.has_frame || absl::IsInvalidArgument(status);
    if (is_news) *trouble = absl::StrCat(visitor.socket.PeerAddress(), ": ", status.message());
    return true;
  });
}

PayloadWriter& PayloadWriter::PutText(std::string_view text) {
  Put(static_cast<uint32_t>(text.size()));
  bytes_ += text;
  return *this;
}

PayloadWriter& PayloadWriter::PutRanks(const std::vector<int>& ranks) {
  Put(static_cast<uint32_t>(ranks.size()));
  for (const int rank : ranks) Put(static_cast<int32_t>(rank));
  return *this;
}

void PayloadReader::GetBytes(void* out, size_t size) {
  ok_ = ok_ && size <= bytes_.size();
  if (!ok_) return;
  std::memcpy(out, bytes_.data(), size);
  bytes_.remove_prefix(size);
}

std::string PayloadReader::GetText() {
  const uint32_t size = Get<uint32_t>();
  ok_ = ok_ && size <= bytes_.size();
  if (!ok_) return "";
  std::string text(bytes_.substr(0, size));
  bytes_.remove_prefix(size);
  return text;
}

std::vector<int> PayloadReader::GetRanks() {
  const uint32_t count = Get<uint32_t>();
  ok_ = ok_ && count <= bytes_.size() / sizeof(int32_t);
  std::vector<int> ranks;
  for (uint32_t i = 0; ok_ && i < count; ++i) ranks.push_back(Get<int32_t>());
  return ranks;
}

}  // namespace baton::transport
