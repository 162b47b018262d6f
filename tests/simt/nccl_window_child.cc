// Rank 1 of two in a process of its own: nccl_window_child ID MODE. Registers a window, signals,
// and prints "ready".
//
//   take   waits for one put of the whole window, and prints whether it holds what it should
//   idle   waits to be killed

#include <nccl.h>
#include <poll.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "tests/simt/options.h"
#include "transport/nccl/one_sided_calls.h"

int main(int argc, char** argv) {
  using namespace baton;
  BATON_CHECK_EQ(argc, 3);
  constexpr size_t kBytes = size_t{1} << 20;
  simt::SetOptions({.nccl_version = 23007});
  const transport::OneSidedCalls calls = transport::FindOneSidedCalls().value();
  ncclUniqueId id = {};
  std::strncpy(id.internal, argv[1], sizeof(id.internal) - 1);
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  void* memory = nullptr;
  ncclWindow_t window = nullptr;
  BATON_CHECK_EQ(ncclCommInitRank(&comm, 2, id, 1), ncclSuccess);
  BATON_CHECK_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  BATON_CHECK_EQ(calls.mem_alloc(&memory, kBytes), ncclSuccess);
  BATON_CHECK_EQ(calls.window_register(comm, memory, kBytes, &window, 1), ncclSuccess);
  BATON_CHECK_EQ(calls.signal(0, 0, 0, 0, comm, stream), ncclSuccess);
  std::puts("ready");
  std::fflush(stdout);
  if (std::string(argv[2]) == "idle") poll(nullptr, 0, 60'000);
  transport::NcclSignalCount count{.signals = 2, .peer = 0};
  BATON_CHECK_EQ(calls.wait_signal(1, &count, comm, stream), ncclSuccess);
  std::vector<char> seen(kBytes);
  BATON_CHECK_EQ(cudaMemcpyAsync(seen.data(), memory, kBytes, cudaMemcpyDeviceToHost, stream),
                 cudaSuccess);
  BATON_CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const bool is_whole = seen == std::vector<char>(kBytes, 'p');
  std::puts(is_whole && !simt::TakeFault().has_value() ? "ok" : "damaged");
  return 0;
}
