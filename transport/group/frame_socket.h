#ifndef BATON_TRANSPORT_GROUP_FRAME_SOCKET_H_
#define BATON_TRANSPORT_GROUP_FRAME_SOCKET_H_

// TCP connections that carry frames between the ranks of a group, or the two ends of a hand-off
// (nccl/), and the listening socket that they meet at. Nothing here blocks (but the resolution of
// host names). What a stranger sends is refused by its first bytes; frames are bounded.
//
// A frame, little-endian: magic u32, payload_bytes u32, kind u8, 3 zero bytes, payload.

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"

namespace baton::transport {

enum class FrameKind : uint8_t {
  // While a group forms.
  kJoin = 1,  // to the host: a rank wants to take part
  kKnock,     // to other ranks: it waits
  kRefused,   // from the host
  kWelcome,   // from the host: the group
  kPeer,      // between two other ranks
  // In a group.
  kBreak,
  kRing,
  kWaiting,
  // Of a hand-off.
  kHandoff,
};

struct Frame {
  FrameKind kind = FrameKind::kJoin;
  std::string payload;
};

inline constexpr size_t kMaxHandshakeBytes = size_t{64} << 10;  // of a payload from a stranger
inline constexpr size_t kMaxFrameBytes = size_t{8} << 20;

class FrameSocket {
 public:
  FrameSocket() = default;  // closed
  FrameSocket(int fd, size_t max_payload_bytes);
  FrameSocket(FrameSocket&& other) noexcept;
  FrameSocket& operator=(FrameSocket&& other) noexcept;
  ~FrameSocket();

  // Starts to connect to "host:port"; Pump tells how it went. INVALID_ARGUMENT: not an address;
  // UNAVAILABLE: cannot be resolved or reached.
  static absl::StatusOr<FrameSocket> Connect(const std::string& address);

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  bool wants_write() const { return is_connecting_ || out_at_ < out_.size(); }
  // Bytes that are queued and not yet taken by the kernel.
  size_t unsent_bytes() const { return out_.size() - out_at_; }
  // The other side's kernel has all that was queued: the process there reads it, if it ever reads.
  bool is_acknowledged() const;
  // The other side ended the connection, or nobody is there any more; not: it cannot be reached.
  bool is_ended() const { return is_ended_; }
  // IP of this side, once connected.
  std::string LocalIp() const;
  std::string PeerAddress() const;

  void Queue(FrameKind kind, std::string_view payload);
  // Sends and receives what can be. UNAVAILABLE: the connection is over (frames that came before
  // are still to be had); INVALID_ARGUMENT: these are no frames.
  absl::Status Pump();
  std::optional<Frame> Next();
  void Close();

 private:
  absl::Status Send();
  absl::Status Receive();
  absl::Status Parse();

  int fd_ = -1;
  size_t max_payload_bytes_ = kMaxFrameBytes;
  bool is_connecting_ = false;
  bool is_ended_ = false;
  std::string in_;
  std::string out_;
  size_t out_at_ = 0;
  std::deque<Frame> frames_;
};

// The listening socket with the connections whose first frame is still to come or not yet taken.
class FrameListener {
 public:
  enum class Guests : uint8_t { kRanks, kHandoffs };  // whose first frames are taken
  // `ip` empty: all IPv4 addresses. `port` 0: any free one. FAILED_PRECONDITION with the fix.
  static absl::StatusOr<FrameListener> Listen(const std::string& ip, uint16_t port,
                                              Guests guests = Guests::kRanks);
  FrameListener(FrameListener&& other) noexcept;
  FrameListener& operator=(FrameListener&&) = delete;
  ~FrameListener();

  struct Visitor {
    FrameSocket socket;
    Frame first;
    Tick since;
    bool has_frame = false;
  };

  uint16_t port() const { return port_; }
  int fd() const { return fd_; }
  // Accepts and reads. Drops connections that have ended, sent no frame, or stay silent; tells the
  // last reason in `trouble` where there is one.
  void Pump(Tick now, std::string* trouble);
  // Those whose first frame has come, and the others.
  std::vector<Visitor>& visitors() { return visitors_; }

 private:
  FrameListener(int fd, uint16_t port, Guests guests) : fd_(fd), port_(port), guests_(guests) {}
  bool IsBeginning(FrameKind kind) const;

  int fd_ = -1;
  uint16_t port_ = 0;
  Guests guests_ = Guests::kRanks;
  std::vector<Visitor> visitors_;
};

// Payloads: integers little-endian, texts with their length in front.
class PayloadWriter {
 public:
  template <typename Int>
  PayloadWriter& Put(Int value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  PayloadWriter& PutText(std::string_view text);
  PayloadWriter& PutRanks(const std::vector<int>& ranks);
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Every Get after the first that does not fit gives zeros; ok() then is false, and also while bytes
// are left over.
class PayloadReader {
 public:
  explicit PayloadReader(std::string_view bytes) : bytes_(bytes) {}
  template <typename Int>
  Int Get() {
    Int value = {};
    GetBytes(&value, sizeof(value));
    return value;
  }
  std::string GetText();
  std::vector<int> GetRanks();
  bool ok() const { return ok_ && bytes_.empty(); }

 private:
  void GetBytes(void* out, size_t size);

  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_FRAME_SOCKET_H_
