#ifndef BATON_TESTS_FREE_PORT_H_
#define BATON_TESTS_FREE_PORT_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "base/check.h"

namespace baton {

// A TCP port of 127.0.0.1 that nobody listens on, for a process that is told its port; a different
// one each time.
inline int FreePort() {
  // The system gives ports of its own range to whoever wants any, before a process that was told
  // one listens there. Each test program begins somewhere else below that range.
  int end = 0;
  std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> end;
  constexpr int kFirst = 10000;
  if (end <= kFirst + 1000) end = 32768;
  static int next = kFirst + ::getpid() * 61 % (end - kFirst);
  for (int tries = 0; tries < 1000; ++tries) {
    const int port = next;
    next = next + 1 < end ? next + 1 : kFirst;
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    const bool free = ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    ::close(socket);
    if (free) return port;
  }
  BATON_CHECK_MSG(false, "no free port");
  return 0;
}

}  // namespace baton

#endif  // BATON_TESTS_FREE_PORT_H_
