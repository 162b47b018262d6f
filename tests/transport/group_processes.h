#ifndef BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_
#define BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_

// Ranks of a group as processes of this host (collectives_child).

#include <memory>
#include <string>
#include <vector>

#include "tests/free_port.h"
#include "tests/transport/child_process.h"

namespace baton::transport {

// Free ports, as "127.0.0.1:port,...".
inline std::string FreeAddresses(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += (i > 0 ? "," : "") + std::string("127.0.0.1:") + std::to_string(FreePort());
  }
  return out;
}

inline std::unique_ptr<ChildProcess> StartRank(const std::string& mode, const std::string& tls,
                                               int ranks, int rank, const std::string& addresses,
                                               const std::string& seconds = "60",
                                               const std::string& program = "collectives_child") {
  return std::make_unique<ChildProcess>(
      BATON_BINARY_DIR "/tests/transport/" + program,
      std::vector<std::string>{mode, tls, std::to_string(ranks), std::to_string(rank), addresses,
                               seconds});
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_GROUP_PROCESSES_H_
