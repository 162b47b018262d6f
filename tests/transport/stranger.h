#ifndef BATON_TESTS_TRANSPORT_STRANGER_H_
#define BATON_TESTS_TRANSPORT_STRANGER_H_

// A connection to a port of this host that says what a test wants.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "transport/group/frame_socket.h"

namespace baton::transport {

inline constexpr uint32_t kFrameMagic = 0x31475442;

// The bytes of a frame, as FrameSocket would send them.
inline std::string FrameBytes(uint32_t magic, uint32_t bytes, uint32_t kind,
                              const std::string& payload) {
  return PayloadWriter().Put(magic).Put(bytes).Put(kind).bytes() + payload;
}

class Stranger {
 public:
  explicit Stranger(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  }
  ~Stranger() { close(fd_); }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  void Say(const std::string& bytes) {
    // The other side may have closed already.
    [[maybe_unused]] const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // Until the other side closes; false after a while.
  bool AwaitEnd() {
    const timeval limit = {.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    char buffer[4096];
    ssize_t got = 1;
    while (got > 0) got = recv(fd_, buffer, sizeof(buffer), 0);
    return got == 0 || errno == ECONNRESET;
  }

 private:
  const int fd_;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_STRANGER_H_
