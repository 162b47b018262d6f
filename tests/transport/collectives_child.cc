// One rank of ucx_group_process_slow_test, nccl_group_process_slow_test, and of transport_bench's
// groups.
//
//   collectives_child MODE TLS RANKS RANK ADDRESSES SECONDS_TO_JOIN [SEED]
//
//   script  joins, makes random calls and compares them with the literal ones; prints "same"
//   loop    joins, then makes calls (all kinds, small and large) until one fails
//   bench   joins, and prints the microseconds of each line of collectives_bench.h
//
// ADDRESSES are comma-separated, by rank. Prints "joined GENERATION"; when a call fails, "failed
// LOST_RANKS MESSAGE", and for loop joins again: without the ranks that it lost, until
// the end of standard input.

#include <poll.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "tests/transport/child_rendezvous.h"
#include "tests/transport/collectives_bench.h"
#include "tests/transport/literal_collectives.h"

namespace baton::transport {
namespace {

bool InputEnded() {
  pollfd fd = {0, POLLIN, 0};
  return poll(&fd, 1, 0) > 0;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

absl::StatusOr<std::unique_ptr<Collectives>> Join(Rendezvous* rendezvous,
                                                  const GroupOptions& options) {
  auto group = rendezvous->Join(options);
  if (group.ok()) {
    std::cout << "joined " << (*group)->generation() << std::endl;
  } else {
    std::cout << "refused " << group.status().message() << std::endl;
  }
  return group;
}

void Loop(Rendezvous* rendezvous, GroupOptions options) {
  auto group = Join(rendezvous, options);
  uint64_t seed = 1;
  while (group.ok() && !InputEnded()) {
    const std::string trouble = RunScript(group->get(), ++seed, 10, kDefaultCollectiveTimeout);
    if (trouble.empty()) continue;
    std::cout << "failed ";
    for (const int rank : (*group)->lost_ranks()) {
      std::cout << rank << " ";
      // Not this one, if the others have given it up.
      if (rank != options.rank) options.absent_ranks.push_back(rank);
    }
    std::sort(options.absent_ranks.begin(), options.absent_ranks.end());
    std::cout << trouble << std::endl;
    group->reset();
    group = Join(rendezvous, options);
    seed = 1;
  }
}

int Main(int argc, char** argv) {
  BATON_CHECK(argc >= 7);
  const std::string mode = argv[1];
  GroupOptions options;
  options.group_id = "processes";
  options.world_size = std::stoi(argv[3]);
  options.rank = std::stoi(argv[4]);
  options.revision = "r";
  options.model_hash = "m";
  options.reduce_part_bytes = 65536;
  options.timeout = Duration::Seconds(std::stod(argv[6]));
  UcxGroupOptions ucx;
  ucx.tls = argv[2];
  ucx.listen_ip = "127.0.0.1";
  ucx.addresses = Split(argv[5]);
  const std::string& own = ucx.addresses[static_cast<size_t>(options.rank)];
  ucx.listen_port = static_cast<uint16_t>(std::stoi(own.substr(own.rfind(':') + 1)));
  const std::unique_ptr<Rendezvous> rendezvous = MakeChildRendezvous(ucx);
  if (mode == "loop") {
    Loop(rendezvous.get(), options);
    return 0;
  }
  if (mode == "bench") options.reduce_part_bytes = GroupOptions().reduce_part_bytes;
  auto group = Join(rendezvous.get(), options);
  if (!group.ok()) return 1;
  if (mode == "bench") {
    for (const CollectiveFigure& figure : BenchCollectives(group->get())) {
      std::cout << figure.us << std::endl;
    }
    return 0;
  }
  const uint64_t seed = argc > 7 ? std::stoull(argv[7]) : 1;
  const std::string trouble = RunScript(group->get(), seed, 150, kDefaultCollectiveTimeout);
  std::cout << (trouble.empty() ? "same" : trouble) << std::endl;
  return 0;
}

}  // namespace
}  // namespace baton::transport

int main(int argc, char** argv) { return baton::transport::Main(argc, argv); }
