// The emulated NCCL's one-sided calls: what is put is there behind its signal, between threads and
// between processes; what becomes of it when one side is gone; and wrong use is told.

#include <gtest/gtest.h>
#include <nccl.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/simt/memory.h"
#include "tests/simt/options.h"
#include "tests/transport/child_process.h"
#include "transport/nccl/one_sided_calls.h"

namespace baton::simt {
namespace {

using transport::FindOneSidedCalls;
using transport::NcclSignalCount;
using transport::OneSidedCalls;

constexpr size_t kBytes = size_t{1} << 20;  // of a window
constexpr int kSymmetric = 1;

Options Release(int version) { return {.devices = 2, .nccl_version = version}; }

// One rank of two, on a device of its own.
struct Side {
  OneSidedCalls calls;
  int peer = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  void* memory = nullptr;
  ncclWindow_t window = nullptr;

  void Open(const ncclUniqueId& id, int rank) {
    calls = FindOneSidedCalls().value();
    peer = 1 - rank;
    EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(ncclCommInitRank(&comm, 2, id, rank), ncclSuccess);
    EXPECT_EQ(calls.mem_alloc(&memory, kBytes), ncclSuccess);
    EXPECT_EQ(calls.window_register(comm, memory, kBytes, &window, kSymmetric), ncclSuccess);
    EXPECT_EQ(calls.signal(peer, 0, 0, 0, comm, stream), ncclSuccess);
  }
  void Close() {
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    if (comm != nullptr) {
      EXPECT_EQ(ncclCommAbort(std::exchange(comm, nullptr)), ncclSuccess);
    }
    EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    if (memory != nullptr) {
      EXPECT_EQ(calls.mem_free(memory), ncclSuccess);
    }
  }
  char* At(size_t at) const { return static_cast<char*>(memory) + at; }
  ncclResult_t Put(char value, size_t at, size_t bytes) {
    EXPECT_EQ(cudaMemsetAsync(At(at), value, bytes, stream), cudaSuccess);
    return calls.put_signal(At(at), bytes, ncclInt8, peer, window, at, 0, 0, 0, comm, stream);
  }
  ncclResult_t Wait(int signals) {
    NcclSignalCount count{.signals = signals, .peer = peer};
    return calls.wait_signal(1, &count, comm, stream);
  }
  std::vector<char> Read(size_t at, size_t bytes) {
    std::vector<char> out(bytes);
    EXPECT_EQ(cudaMemcpyAsync(out.data(), At(at), bytes, cudaMemcpyDeviceToHost, stream),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    return out;
  }
};

class NcclWindowTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { SetOptions(Release(23007)); }
  void TearDown() override {
    const std::optional<Fault> fault = TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
};

ncclUniqueId NewId() {
  ncclUniqueId id;
  EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  return id;
}

// Both sides, opened, and closed behind the body.
void ForBoth(const std::function<void(Side& from, Side& to)>& body) {
  const ncclUniqueId id = NewId();
  Side from, to;
  std::thread other([&] { to.Open(id, 1); });
  from.Open(id, 0);
  other.join();
  body(from, to);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  from.Close();
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  to.Close();
}

TEST_F(NcclWindowTest, WhatIsPutIsThereBehindItsSignal) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Options options = Release(23007);
    options.seed = seed;
    options.check_races = seed % 2 == 0;
    const ScopedOptions scope(options);
    ForBoth([](Side& from, Side& to) {
      // The first signal is that of Open.
      EXPECT_EQ(to.Wait(1), ncclSuccess);
      for (size_t put = 0; put < 5; ++put) {
        const size_t at = put * 200'000, bytes = 150'000 + put;
        const char value = static_cast<char>('a' + put);
        EXPECT_NE(Memory::Get().FirstWithout(to.At(at), bytes, kInitialized), nullptr);
        EXPECT_EQ(to.Wait(1), ncclSuccess);
        EXPECT_EQ(from.Put(value, at, bytes), ncclSuccess);
        EXPECT_EQ(to.Read(at, bytes), std::vector<char>(bytes, value));
        EXPECT_EQ(Memory::Get().FirstWithout(to.At(at), bytes, kInitialized), nullptr);
      }
    });
  }
}

// A receiver may wait for several at once, and both sides may put.
TEST_F(NcclWindowTest, SignalsAreCounted) {
  ForBoth([](Side& from, Side& to) {
    for (const char value : {'x', 'y', 'z'}) EXPECT_EQ(from.Put(value, 0, 100), ncclSuccess);
    EXPECT_EQ(to.Wait(4), ncclSuccess);
    EXPECT_EQ(to.Read(0, 100), std::vector<char>(100, 'z'));
    EXPECT_EQ(to.Put('b', 5000, 100), ncclSuccess);
    EXPECT_EQ(from.Wait(2), ncclSuccess);
    EXPECT_EQ(from.Read(5000, 100), std::vector<char>(100, 'b'));
    EXPECT_EQ(to.Wait(1), ncclSuccess);
    EXPECT_EQ(cudaStreamQuery(to.stream), cudaErrorNotReady);
    EXPECT_EQ(from.Put('e', 0, 100), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(to.stream), cudaSuccess);
  });
}

// The sender's stream waits for nothing of a receiver that does nothing.
TEST_F(NcclWindowTest, PutsEndWithoutTheReceiver) {
  ForBoth([](Side& from, Side&) {
    for (int put = 0; put < 20; ++put) EXPECT_EQ(from.Put('p', 0, kBytes), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(from.stream), cudaSuccess);
  });
}

TEST_F(NcclWindowTest, NonBlockingCallsAreInProgressUntilAllHaveMadeThem) {
  const ncclUniqueId id = NewId();
  const OneSidedCalls calls = FindOneSidedCalls().value();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comms[2] = {};
  cudaStream_t streams[2] = {};
  void* memory[2] = {};
  ncclWindow_t windows[2] = {};
  const auto state = [&](int rank) {
    ncclResult_t result = ncclSuccess;
    EXPECT_EQ(ncclCommGetAsyncError(comms[rank], &result), ncclSuccess);
    return result;
  };
  const auto await = [&] {
    for (const int rank : {0, 1}) {
      while (state(rank) == ncclInProgress) std::this_thread::yield();
      EXPECT_EQ(state(rank), ncclSuccess);
    }
  };
  for (const int rank : {0, 1}) {
    EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&streams[rank], cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(calls.mem_alloc(&memory[rank], kBytes), ncclSuccess);
    EXPECT_EQ(ncclCommInitRankConfig(&comms[rank], 2, id, rank, &config), ncclInProgress);
  }
  await();
  for (const int rank : {0, 1}) {
    EXPECT_EQ(calls.window_register(comms[rank], memory[rank], kBytes, &windows[rank], kSymmetric),
              ncclInProgress);
    if (rank == 0) {
      EXPECT_EQ(state(0), ncclInProgress);
    }
  }
  await();
  EXPECT_EQ(calls.signal(1, 0, 0, 0, comms[0], streams[0]), ncclInProgress);
  EXPECT_EQ(state(0), ncclInProgress);
  EXPECT_EQ(calls.signal(0, 0, 0, 0, comms[1], streams[1]), ncclInProgress);
  await();
  for (const int rank : {0, 1}) {
    EXPECT_EQ(ncclCommAbort(comms[rank]), ncclSuccess);
    EXPECT_EQ(cudaStreamDestroy(streams[rank]), cudaSuccess);
    EXPECT_EQ(calls.mem_free(memory[rank]), ncclSuccess);
  }
}

// An abort ends what ranks do together, though the other one never comes.
TEST_F(NcclWindowTest, AnAbortEndsARegistrationThatStands) {
  const ncclUniqueId id = NewId();
  const OneSidedCalls calls = FindOneSidedCalls().value();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t mine = nullptr, theirs = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&mine, 2, id, 0, &config), ncclInProgress);
  EXPECT_EQ(ncclCommInitRank(&theirs, 2, id, 1), ncclSuccess);
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) EXPECT_EQ(ncclCommGetAsyncError(mine, &state), ncclSuccess);
  void* memory = nullptr;
  ncclWindow_t window = nullptr;
  EXPECT_EQ(calls.mem_alloc(&memory, kBytes), ncclSuccess);
  EXPECT_EQ(calls.window_register(mine, memory, kBytes, &window, kSymmetric), ncclInProgress);
  EXPECT_EQ(ncclCommAbort(mine), ncclSuccess);
  EXPECT_EQ(window, nullptr);
  EXPECT_EQ(ncclCommAbort(theirs), ncclSuccess);
  EXPECT_EQ(calls.mem_free(memory), ncclSuccess);
}

// What an abort does not end: only the signal does.
TEST_F(NcclWindowTest, AWaitOutlivesItsCommunicator) {
  ForBoth([](Side& from, Side& to) {
    EXPECT_EQ(to.Wait(2), ncclSuccess);
    EXPECT_EQ(ncclCommAbort(std::exchange(to.comm, nullptr)), ncclSuccess);
    EXPECT_EQ(cudaStreamQuery(to.stream), cudaErrorNotReady);
    EXPECT_EQ(from.Put('p', 0, 100), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(to.stream), cudaSuccess);
  });
}

// A peer that goes on after it was given up for lost.
TEST_F(NcclWindowTest, ALateWriterMeetsMemoryThatNobodyHas) {
  ForBoth([](Side& from, Side& to) {
    EXPECT_EQ(cudaStreamSynchronize(to.stream), cudaSuccess);
    EXPECT_EQ(ncclCommAbort(std::exchange(to.comm, nullptr)), ncclSuccess);
    EXPECT_EQ(to.calls.mem_free(std::exchange(to.memory, nullptr)), ncclSuccess);
    EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
    std::vector<void*> others(8);
    for (void*& other : others) {
      EXPECT_EQ(to.calls.mem_alloc(&other, kBytes), ncclSuccess);
      EXPECT_EQ(cudaMemsetAsync(other, 'o', kBytes, to.stream), cudaSuccess);
    }
    EXPECT_EQ(cudaStreamSynchronize(to.stream), cudaSuccess);
    EXPECT_EQ(from.Put('p', 0, kBytes), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(from.stream), cudaSuccess);
    for (void* other : others) {
      std::vector<char> seen(kBytes);
      EXPECT_EQ(cudaMemcpy(seen.data(), other, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
      EXPECT_EQ(seen, std::vector<char>(kBytes, 'o'));
      EXPECT_EQ(to.calls.mem_free(other), ncclSuccess);
    }
  });
}

std::unique_ptr<transport::ChildProcess> StartChild(const ncclUniqueId& id,
                                                    const std::string& mode) {
  return std::make_unique<transport::ChildProcess>(
      BATON_BINARY_DIR "/tests/simt/nccl_window_child",
      std::vector<std::string>{std::string(id.internal), mode});
}

TEST_F(NcclWindowTest, RanksMayBeProcesses) {
  const ncclUniqueId id = NewId();
  auto child = StartChild(id, "take");
  Side self;
  self.Open(id, 0);
  EXPECT_EQ(child->ReadLine(), "ready");
  EXPECT_EQ(self.Put('p', 0, kBytes), ncclSuccess);
  EXPECT_EQ(child->ReadLine(), "ok");
  EXPECT_EQ(child->Finish(), 0);
  self.Close();
}

TEST_F(NcclWindowTest, PutsToAKilledProcessEnd) {
  const ncclUniqueId id = NewId();
  auto child = StartChild(id, "idle");
  Side self;
  self.Open(id, 0);
  EXPECT_EQ(child->ReadLine(), "ready");
  child->Kill();
  EXPECT_EQ(self.Put('p', 0, kBytes), ncclSuccess);
  EXPECT_EQ(cudaStreamSynchronize(self.stream), cudaSuccess);
  self.Close();
}

TEST_F(NcclWindowTest, OnlyTheReleasesWhoseWayIsKnown) {
  const auto is_known = [](int version) {
    const ScopedOptions scope(Release(version));
    return FindOneSidedCalls().ok();
  };
  for (const int version : {22809, 22907, 23002, 23102, 23203}) EXPECT_FALSE(is_known(version));
  for (const int version : {23003, 23007}) EXPECT_TRUE(is_known(version));
  const ScopedOptions old(Release(22809));
  EXPECT_EQ(transport::FindNcclFunction("ncclPutSignal"), nullptr);
  EXPECT_NE(FindOneSidedCalls().status().message().find("of release 2.28.9;"),
            absl::string_view::npos);
}

// One test each for what is a fault.
class NcclWindowMistakes : public testing::Test {
 protected:
  static void SetUpTestSuite() { SetOptions(Release(23007)); }
  static void ExpectFault(const char* what) {
    const std::optional<Fault> fault = TakeFault();
    ASSERT_TRUE(fault.has_value()) << what;
    EXPECT_NE(fault->Text().find(what), std::string::npos) << fault->Text();
  }
};

TEST_F(NcclWindowMistakes, CallsThatNcclRefuses) {
  ForBoth([](Side& from, Side&) {
    const auto put = [&](const void* source, size_t bytes, size_t at, int peer, int context) {
      return from.calls.put_signal(source, bytes, ncclInt8, peer, from.window, at, 0, context, 0,
                                   from.comm, from.stream);
    };
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    void *plain = nullptr, *pinned = nullptr;
    EXPECT_EQ(cudaMalloc(&plain, 4096), cudaSuccess);
    EXPECT_EQ(cudaMallocHost(&pinned, 4096), cudaSuccess);
    EXPECT_EQ(put(plain, 100, 0, 1, 0), ncclInvalidUsage);
    ExpectFault("in no window of this communicator");
    EXPECT_EQ(put(pinned, 100, 0, 1, 0), ncclInvalidUsage);
    ExpectFault("in no window of this communicator");
    EXPECT_EQ(put(from.At(0), 100, kBytes - 99, 1, 0), ncclInvalidUsage);
    ExpectFault("of a window of 1048576");
    EXPECT_EQ(put(from.At(kBytes - 50), 100, 0, 1, 0), ncclInvalidUsage);
    ExpectFault("in no window of this communicator");
    EXPECT_EQ(put(from.At(0), 100, 0, 0, 0), ncclInvalidUsage);
    ExpectFault("is no peer");
    EXPECT_EQ(put(from.At(0), 100, 0, 1, 1), ncclInvalidUsage);
    ExpectFault("other than 0");
    for (void* memory : {plain, pinned}) {
      ncclWindow_t window = nullptr;
      EXPECT_EQ(from.calls.window_register(from.comm, memory, 4096, &window, kSymmetric),
                ncclInvalidUsage);
      ExpectFault("not from ncclMemAlloc");
    }
    EXPECT_EQ(from.calls.mem_free(plain), ncclInvalidUsage);
    ExpectFault("has not given");
    EXPECT_EQ(cudaFree(plain), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  });
}

TEST_F(NcclWindowMistakes, ARankOfAnotherHost) {
  ForBoth([](Side& from, Side&) {
    Options apart = Release(23007);
    apart.nccl_apart = true;
    const ScopedOptions scope(apart);
    void* theirs = nullptr;
    EXPECT_EQ(from.calls.peer_pointer(from.window, 0, 1, &theirs), ncclSuccess);
    EXPECT_EQ(theirs, nullptr);
    EXPECT_EQ(from.Put('p', 0, 100), ncclInvalidUsage);
    ExpectFault("which no abort ends");
  });
}

TEST_F(NcclWindowMistakes, WindowsOfTwoSizes) {
  ForBoth([](Side& from, Side& to) {
    EXPECT_EQ(cudaStreamSynchronize(from.stream), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(to.stream), cudaSuccess);
    std::thread other([&] {
      ncclWindow_t window = nullptr;
      EXPECT_NE(to.calls.window_register(to.comm, to.memory, 4096, &window, kSymmetric),
                ncclSuccess);
    });
    ncclWindow_t window = nullptr;
    EXPECT_NE(from.calls.window_register(from.comm, from.memory, 8192, &window, kSymmetric),
              ncclSuccess);
    other.join();
    ExpectFault("does something else");
  });
}

}  // namespace
}  // namespace baton::simt
