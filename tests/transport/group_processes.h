#ifndef BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_
#define BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_

// Ranks of a UCX group as processes of this host (collectives_child).

#include <memory>
#include <string>
#include <vector>

#include "tests/transport/child_process.h"
#include "transport/group/frame_socket.h"

namespace baton::transport {

// Ports that were free a moment ago, as "127.0.0.1:port,...".
inline std::string FreeAddresses(int count) {
  std::vector<FrameListener> held;
  std::string out;
  for (int i = 0; i < count; ++i) {
    held.push_back(FrameListener::Listen("127.0.0.1", 0).value());
    out += (i > 0 ? "," : "") + std::string("127.0.0.1:") + std::to_string(held.back().port());
  }
  return out;
}

inline std::unique_ptr<ChildProcess> StartRank(const std::string& mode, const std::string& tls,
                                               int ranks, int rank, const std::string& addresses,
                                               const std::string& seconds = "60") {
  return std::make_unique<ChildProcess>(
      BATON_BINARY_DIR "/tests/transport/collectives_child",
      std::vector<std::string>{mode, tls, std::to_string(ranks), std::to_string(rank), addresses,
                               seconds});
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_
