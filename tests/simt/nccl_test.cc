// The emulated NCCL: what comes equals the literal definition, for ranks that are threads and ranks
// that are processes, and wrong use is told.

#include <gtest/gtest.h>
#include <nccl.h>
#include <poll.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tests/simt/nccl_comm.h"
#include "tests/simt/options.h"
#include "tests/transport/child_process.h"

namespace baton::simt {
namespace {

constexpr int kRanks = 4;

class NcclTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { SetOptions({.devices = kRanks}); }
  void TearDown() override {
    const std::optional<Fault> fault = TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
};

// What one rank has, on a device of its own.
struct Rank {
  int rank = 0, ranks = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;

  // Device memory with these values.
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* data = Allocate<T>(values.size());
    EXPECT_EQ(cudaMemcpyAsync(data, values.data(), values.size() * sizeof(T),
                              cudaMemcpyHostToDevice, stream),
              cudaSuccess);
    return data;
  }
  template <typename T>
  T* Allocate(size_t count) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, std::max<size_t>(count, 1) * sizeof(T)), cudaSuccess);
    owned.push_back(data);
    return static_cast<T*>(data);
  }
  template <typename T>
  std::vector<T> Download(const T* data, size_t count) {
    std::vector<T> out(count);
    EXPECT_EQ(cudaMemcpyAsync(out.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost, stream),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    return out;
  }
  std::vector<void*> owned;
};

// Runs the body as each of `ranks` threads.
void ForRanks(int ranks, const std::function<void(Rank&)>& body) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      Rank rank{.rank = r, .ranks = ranks};
      EXPECT_EQ(cudaSetDevice(r), cudaSuccess);
      EXPECT_EQ(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), cudaSuccess);
      EXPECT_EQ(ncclCommInitRank(&rank.comm, ranks, id, r), ncclSuccess);
      body(rank);
      EXPECT_EQ(cudaStreamDestroy(rank.stream), cudaSuccess);
      if (rank.comm != nullptr) {
        EXPECT_EQ(ncclCommDestroy(rank.comm), ncclSuccess);
      }
      for (void* data : rank.owned) EXPECT_EQ(cudaFree(data), cudaSuccess);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

float ValueOf(int rank, size_t i) { return static_cast<float>(rank * 100) + static_cast<float>(i); }

std::vector<float> ValuesOf(int rank, size_t count) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = ValueOf(rank, i);
  return out;
}

TEST_F(NcclTest, CollectivesEqualTheirDefinition) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const ScopedOptions scope({.seed = seed, .check_races = seed % 2 == 0, .devices = kRanks});
    for (const int ranks : {1, 2, 4}) {
      for (const size_t count : {size_t{0}, size_t{1}, size_t{777}, size_t{200'000}}) {
        ForRanks(ranks, [&](Rank& self) {
          const size_t n = static_cast<size_t>(ranks);
          float* const mine = self.Upload(ValuesOf(self.rank, count));
          float* const all = self.Allocate<float>(count * n);
          float* const sum = self.Allocate<float>(count);
          float* const first = self.Allocate<float>(count);
          EXPECT_EQ(ncclAllGather(mine, all, count, ncclFloat32, self.comm, self.stream),
                    ncclSuccess);
          EXPECT_EQ(ncclAllReduce(mine, sum, count, ncclFloat32, ncclSum, self.comm, self.stream),
                    ncclSuccess);
          EXPECT_EQ(
              ncclBroadcast(mine, first, count, ncclFloat32, ranks - 1, self.comm, self.stream),
              ncclSuccess);
          const std::vector<float> gathered = self.Download(all, count * n);
          const std::vector<float> summed = self.Download(sum, count);
          const std::vector<float> cast = self.Download(first, count);
          for (size_t i = 0; i < count; i += 1 + count / 50) {
            float expected = 0.0f;
            for (int r = 0; r < ranks; ++r) {
              ASSERT_EQ(gathered[static_cast<size_t>(r) * count + i], ValueOf(r, i));
              expected += ValueOf(r, i);
            }
            ASSERT_EQ(summed[i], expected);
            ASSERT_EQ(cast[i], ValueOf(ranks - 1, i));
          }
        });
      }
    }
  }
}

// As an all-to-all-v: each pair of ranks has a size of its own, some are zero.
TEST_F(NcclTest, GroupedSendsAndReceivesMeetInAnyOrder) {
  const auto size = [](int from, int to) {
    return static_cast<size_t>((from * 31 + to * 17) % 5) * 9'001;
  };
  ForRanks(kRanks, [&](Rank& self) {
    std::vector<float*> sent(kRanks), received(kRanks);
    for (int peer = 0; peer < kRanks; ++peer) {
      sent[static_cast<size_t>(peer)] =
          self.Upload(ValuesOf(self.rank * 10 + peer, size(self.rank, peer)));
      received[static_cast<size_t>(peer)] = self.Allocate<float>(size(peer, self.rank));
    }
    ASSERT_EQ(ncclGroupStart(), ncclSuccess);
    for (int i = 0; i < kRanks; ++i) {
      const int to = (self.rank + i) % kRanks, from = i;
      ASSERT_EQ(ncclSend(sent[static_cast<size_t>(to)], size(self.rank, to), ncclFloat32, to,
                         self.comm, self.stream),
                ncclSuccess);
      ASSERT_EQ(ncclRecv(received[static_cast<size_t>(from)], size(from, self.rank), ncclFloat32,
                         from, self.comm, self.stream),
                ncclSuccess);
    }
    ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
    for (int peer = 0; peer < kRanks; ++peer) {
      const size_t count = size(peer, self.rank);
      EXPECT_EQ(self.Download(received[static_cast<size_t>(peer)], count),
                ValuesOf(peer * 10 + self.rank, count));
    }
  });
}

TEST_F(NcclTest, AGraphRepeatsACollective) {
  ForRanks(2, [&](Rank& self) {
    float* const mine = self.Upload(ValuesOf(self.rank, 100));
    float* const all = self.Allocate<float>(200);
    ASSERT_EQ(cudaStreamSynchronize(self.stream), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(self.stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(ncclAllGather(mine, all, 100, ncclFloat32, self.comm, self.stream), ncclSuccess);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(self.stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int round = 0; round < 3; ++round) {
      const std::vector<float> values = ValuesOf(self.rank + round, 100);
      ASSERT_EQ(cudaMemcpyAsync(mine, values.data(), 400, cudaMemcpyHostToDevice, self.stream),
                cudaSuccess);
      ASSERT_EQ(cudaGraphLaunch(exec, self.stream), cudaSuccess);
      EXPECT_EQ(self.Download(all, 200)[150], ValueOf(1 + round, 50));
    }
    EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  });
}

TEST_F(NcclTest, ANonBlockingCommunicatorIsReadyWhenAllHaveCome) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t first = nullptr, second = nullptr;
  ASSERT_EQ(ncclCommInitRankConfig(&first, 2, id, 0, &config), ncclInProgress);
  ncclResult_t state = ncclSuccess;
  ASSERT_EQ(ncclCommGetAsyncError(first, &state), ncclSuccess);
  EXPECT_EQ(state, ncclInProgress);
  ASSERT_EQ(ncclCommInitRankConfig(&second, 2, id, 1, &config), ncclInProgress);
  for (ncclComm_t comm : {first, second}) {
    do {
      ASSERT_EQ(ncclCommGetAsyncError(comm, &state), ncclSuccess);
    } while (state == ncclInProgress);
    EXPECT_EQ(state, ncclSuccess);
  }
  EXPECT_EQ(ncclCommDestroy(first), ncclSuccess);
  EXPECT_EQ(ncclCommDestroy(second), ncclSuccess);
}

TEST_F(NcclTest, ALostPeerIsToldAndAbortFreesTheStream) {
  ForRanks(2, [&](Rank& self) {
    float* const mine = self.Upload(ValuesOf(self.rank, 100));
    float* const all = self.Allocate<float>(200);
    ASSERT_EQ(cudaStreamSynchronize(self.stream), cudaSuccess);
    if (self.rank == 1) {
      EXPECT_EQ(ncclCommAbort(std::exchange(self.comm, nullptr)), ncclSuccess);
      return;
    }
    ASSERT_EQ(ncclAllGather(mine, all, 100, ncclFloat32, self.comm, self.stream), ncclSuccess);
    ncclResult_t state = ncclSuccess;
    do {
      ASSERT_EQ(ncclCommGetAsyncError(self.comm, &state), ncclSuccess);
    } while (state == ncclSuccess);
    EXPECT_EQ(state, ncclRemoteError);
    EXPECT_EQ(cudaStreamQuery(self.stream), cudaErrorNotReady);
    EXPECT_EQ(ncclCommAbort(std::exchange(self.comm, nullptr)), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(self.stream), cudaSuccess);
  });
}

// One test each for what is a fault.
class NcclMistakes : public testing::Test {
 protected:
  static void SetUpTestSuite() { SetOptions({.devices = kRanks}); }
  static void ExpectFault(const char* what) {
    const std::optional<Fault> fault = TakeFault();
    ASSERT_TRUE(fault.has_value());
    EXPECT_NE(fault->Text().find(what), std::string::npos) << fault->Text();
  }
};

// Each rank gives its communicator up, as after any failure.
void DisagreeAnd(const std::function<ncclResult_t(Rank&, float*, float*)>& call) {
  ForRanks(2, [&](Rank& self) {
    float* const mine = self.Allocate<float>(200);
    float* const all = self.Allocate<float>(400);
    EXPECT_EQ(cudaMemsetAsync(mine, 0, 800, self.stream), cudaSuccess);
    (void)call(self, mine, all);
    (void)cudaStreamSynchronize(self.stream);
    EXPECT_EQ(ncclCommAbort(std::exchange(self.comm, nullptr)), ncclSuccess);
    self.owned.clear();  // the device has failed
  });
}

TEST_F(NcclMistakes, SizesThatDisagree) {
  DisagreeAnd([](Rank& self, float* mine, float* all) {
    const size_t count = self.rank == 0 ? 100 : 200;
    return ncclAllGather(mine, all, count, ncclFloat32, self.comm, self.stream);
  });
  ExpectFault("a message of all-gather of");
}

TEST_F(NcclMistakes, CallsThatDiffer) {
  DisagreeAnd([](Rank& self, float* mine, float* all) {
    return self.rank == 0
               ? ncclAllGather(mine, all, 100, ncclFloat32, self.comm, self.stream)
               : ncclAllReduce(mine, all, 100, ncclFloat32, ncclSum, self.comm, self.stream);
  });
  ExpectFault("it sent one of all-");
}

TEST_F(NcclMistakes, ACommunicatorThatIsNotReady) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ASSERT_EQ(ncclCommInitRankConfig(&comm, 2, id, 0, &config), ncclInProgress);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(ncclAllGather(nullptr, nullptr, 0, ncclInt8, comm, stream), ncclInvalidUsage);
  ExpectFault("not ready yet");
  EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

// --- ranks that are processes

std::string NewId() {
  ncclUniqueId id;
  EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  return id.internal;
}

std::unique_ptr<transport::ChildProcess> StartRank(const std::string& id, int ranks, int rank,
                                                   int rounds) {
  return std::make_unique<transport::ChildProcess>(
      BATON_BINARY_DIR "/tests/simt/nccl_child",
      std::vector<std::string>{id, std::to_string(ranks), std::to_string(rank),
                               std::to_string(rounds)});
}

TEST_F(NcclTest, RanksMayBeProcesses) {
  const std::string id = NewId();
  std::vector<std::unique_ptr<transport::ChildProcess>> ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.push_back(StartRank(id, 3, rank, 5));
  for (auto& rank : ranks) {
    EXPECT_EQ(rank->ReadLine(), "connected");
    EXPECT_EQ(rank->ReadLine(), "ok");
    EXPECT_EQ(rank->Finish(), 0);
  }
}

TEST_F(NcclTest, AKilledProcessIsALostPeer) {
  const std::string id = NewId();
  auto other = StartRank(id, 2, 1, 0);
  ncclUniqueId raw = {};
  id.copy(raw.internal, id.size());
  ncclComm_t comm = nullptr;
  ASSERT_EQ(ncclCommInitRank(&comm, 2, raw, 0), ncclSuccess);
  EXPECT_EQ(other->ReadLine(), "connected");
  Rank self{.rank = 0, .ranks = 2, .comm = comm};
  ASSERT_EQ(cudaStreamCreateWithFlags(&self.stream, cudaStreamNonBlocking), cudaSuccess);
  float* const mine = self.Upload(ValuesOf(0, 100));
  float* const all = self.Allocate<float>(200);
  ASSERT_EQ(ncclAllGather(mine, all, 100, ncclFloat32, comm, self.stream), ncclSuccess);
  other->Kill();
  ncclResult_t state = ncclSuccess;
  do {
    ASSERT_EQ(ncclCommGetAsyncError(comm, &state), ncclSuccess);
  } while (state == ncclSuccess);
  EXPECT_EQ(state, ncclRemoteError);
  EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
  EXPECT_EQ(cudaStreamDestroy(self.stream), cudaSuccess);
  for (void* data : self.owned) EXPECT_EQ(cudaFree(data), cudaSuccess);
}

// Two ranks with two communicators, of which each rank launches another one first, as it must not
// be where only one finds room at a time.
class TwoOrders {
 public:
  TwoOrders() {
    ncclUniqueId ids[2];
    for (ncclUniqueId& id : ids) EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    OnRanks([&](int rank) {
      for (size_t c = 0; c < 2; ++c) {
        Side& side = At(rank, c);
        EXPECT_EQ(cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking), cudaSuccess);
        EXPECT_EQ(ncclCommInitRank(&side.comm, 2, ids[c], rank), ncclSuccess);
        EXPECT_EQ(cudaMalloc(&side.data, 2 * kBytes), cudaSuccess);
        EXPECT_EQ(cudaMemset(side.data, 0, 2 * kBytes), cudaSuccess);
      }
    });
    // The first of each rank runs before the second is launched.
    for (const size_t turn : {size_t{0}, size_t{1}}) {
      for (int rank = 0; rank < 2; ++rank) {
        EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
        Side& side = At(rank, turn ^ static_cast<size_t>(rank));
        EXPECT_EQ(ncclAllGather(side.data, side.data + kBytes, kBytes / 2, ncclInt8, side.comm,
                                side.stream),
                  ncclSuccess);
        for (int i = 0; i < 10'000 && NcclComm::PlacesTaken(rank) == 0; ++i) poll(nullptr, 0, 1);
      }
    }
  }
  ~TwoOrders() {
    for (Side& side : sides_) {
      EXPECT_EQ(cudaStreamDestroy(side.stream), cudaSuccess);
      if (side.comm != nullptr) {
        EXPECT_EQ(ncclCommDestroy(side.comm), ncclSuccess);
      }
      EXPECT_EQ(cudaFree(side.data), cudaSuccess);
    }
  }
  cudaError_t State(int rank, size_t comm) { return cudaStreamQuery(At(rank, comm).stream); }
  void Wait(size_t comm) {
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(cudaStreamSynchronize(At(rank, comm).stream), cudaSuccess);
    }
  }
  void Abort(size_t comm) {
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(ncclCommAbort(std::exchange(At(rank, comm).comm, nullptr)), ncclSuccess);
    }
  }

 private:
  static constexpr size_t kBytes = 1024;
  struct Side {
    cudaStream_t stream = nullptr;
    ncclComm_t comm = nullptr;
    char* data = nullptr;
  };
  Side& At(int rank, size_t comm) { return sides_[static_cast<size_t>(rank) * 2 + comm]; }
  static void OnRanks(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&body, rank] {
        EXPECT_EQ(cudaSetDevice(rank), cudaSuccess);
        body(rank);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  Side sides_[4];
};

TEST_F(NcclTest, WithoutRoomForBothCommunicatorsInTwoOrdersStandStill) {
  const ScopedOptions scope({.devices = kRanks, .nccl_room = {1, 1}});
  TwoOrders orders;
  poll(nullptr, 0, 50);
  for (const size_t comm : {size_t{0}, size_t{1}}) {
    for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(orders.State(rank, comm), cudaErrorNotReady);
  }
  orders.Abort(0);
  orders.Wait(1);
}

TEST_F(NcclTest, WithRoomForBothOnOneOfTheGpusTheyDoNot) {
  const ScopedOptions scope({.devices = kRanks, .nccl_room = {2, 1}});
  TwoOrders orders;
  orders.Wait(0);
  orders.Wait(1);
}

}  // namespace
}  // namespace baton::simt
