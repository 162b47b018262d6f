#ifndef BATON_TESTS_TRANSPORT_COLLECTIVES_BENCH_H_
#define BATON_TESTS_TRANSPORT_COLLECTIVES_BENCH_H_

// The latency of the collectives that a decode step waits for, measured by all ranks of a group
// together. Not a test.

#include <vector>

#include "base/check.h"
#include "transport/collectives.h"

namespace baton::transport {

struct CollectiveFigure {
  const char* call = "";
  size_t bytes = 0;  // of a message between two ranks; of the data, for AllReduceSum
  double us = 0;
};

inline std::vector<CollectiveFigure> BenchCollectives(Collectives* group) {
  std::vector<CollectiveFigure> figures;
  const size_t ranks = static_cast<size_t>(group->world_size());
  MonotonicClock clock;
  const auto measure = [&](const char* what, size_t bytes, int rounds, auto call) {
    for (int round = 0; round < rounds / 10 + 2; ++round) BATON_CHECK(call().ok());
    const Tick start = clock.Now();
    for (int round = 0; round < rounds; ++round) BATON_CHECK(call().ok());
    figures.push_back({what, bytes, (clock.Now() - start).seconds() * 1e6 / rounds});
  };
  const Duration timeout = Duration::Seconds(20);
  {
    std::vector<std::byte> mine(64), all(64 * ranks);
    measure("AllGather", 64, 1000, [&] { return group->AllGather(mine, all, timeout); });
  }
  for (const size_t bytes : {size_t{4} << 10, size_t{64} << 10, size_t{1} << 20}) {
    std::vector<std::byte> send(bytes * ranks), recv(bytes * ranks);
    const std::vector<size_t> sizes(ranks, bytes);
    const int rounds = bytes < 100'000 ? 200 : 20;
    measure("AllToAllV", bytes, rounds,
            [&] { return group->AllToAllV(send, sizes, recv, sizes, timeout); });
  }
  std::vector<std::byte> data(size_t{1} << 20);
  measure("AllReduceSum", data.size(), 20,
          [&] { return group->AllReduceSum(data, ReduceType::kF32, timeout); });
  return figures;
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_COLLECTIVES_BENCH_H_
