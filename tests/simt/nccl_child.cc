// One rank in a process of its own: nccl_child ID RANKS RANK ROUNDS. Gathers and sends in a ring,
// checks what comes, prints "ok"; with ROUNDS 0 it connects and waits to be killed.

#include <nccl.h>
#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/check.h"

namespace {

constexpr size_t kCount = 50'000;

}  // namespace

int main(int argc, char** argv) {
  BATON_CHECK_EQ(argc, 5);
  ncclUniqueId id = {};
  std::strncpy(id.internal, argv[1], sizeof(id.internal) - 1);
  const int ranks = std::atoi(argv[2]), rank = std::atoi(argv[3]), rounds = std::atoi(argv[4]);
  ncclComm_t comm = nullptr;
  BATON_CHECK_EQ(ncclCommInitRank(&comm, ranks, id, rank), ncclSuccess);
  std::puts("connected");
  std::fflush(stdout);
  if (rounds == 0) poll(nullptr, 0, 60'000);
  cudaStream_t stream = nullptr;
  BATON_CHECK_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  int32_t *mine = nullptr, *all = nullptr;
  const size_t bytes = kCount * sizeof(int32_t), ranks_bytes = bytes * static_cast<size_t>(ranks);
  BATON_CHECK_EQ(cudaMalloc(reinterpret_cast<void**>(&mine), bytes), cudaSuccess);
  BATON_CHECK_EQ(cudaMalloc(reinterpret_cast<void**>(&all), ranks_bytes), cudaSuccess);
  std::vector<int32_t> host(kCount), seen(kCount * static_cast<size_t>(ranks));
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < kCount; ++i) {
      host[i] = static_cast<int32_t>(i) * 7 + rank * 1000 + round;
    }
    BATON_CHECK_EQ(cudaMemcpyAsync(mine, host.data(), bytes, cudaMemcpyHostToDevice, stream),
                   cudaSuccess);
    BATON_CHECK_EQ(ncclAllGather(mine, all, kCount, ncclInt32, comm, stream), ncclSuccess);
    BATON_CHECK_EQ(cudaMemcpyAsync(seen.data(), all, ranks_bytes, cudaMemcpyDeviceToHost, stream),
                   cudaSuccess);
    BATON_CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    for (size_t at = 0; at < seen.size(); ++at) {
      const int from = static_cast<int>(at / kCount);
      BATON_CHECK_EQ(seen[at], static_cast<int32_t>(at % kCount) * 7 + from * 1000 + round);
    }
    BATON_CHECK_EQ(ncclGroupStart(), ncclSuccess);
    BATON_CHECK_EQ(ncclSend(mine, kCount, ncclInt32, (rank + 1) % ranks, comm, stream),
                   ncclSuccess);
    BATON_CHECK_EQ(ncclRecv(all, kCount, ncclInt32, (rank + ranks - 1) % ranks, comm, stream),
                   ncclSuccess);
    BATON_CHECK_EQ(ncclGroupEnd(), ncclSuccess);
    BATON_CHECK_EQ(cudaMemcpyAsync(seen.data(), all, bytes, cudaMemcpyDeviceToHost, stream),
                   cudaSuccess);
    BATON_CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    BATON_CHECK_EQ(seen[1], 7 + (rank + ranks - 1) % ranks * 1000 + round);
  }
  std::puts("ok");
  return 0;
}
