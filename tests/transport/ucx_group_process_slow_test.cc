// Groups of processes over UCX: ranks that start late, are killed, stopped, and started again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "tests/transport/group_processes.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class UcxGroupProcessTest : public testing::TestWithParam<const char*> {
 protected:
  void Start(const std::string& mode, int rank, const std::string& seconds = "60") {
    if (ranks_.size() <= static_cast<size_t>(rank)) ranks_.resize(static_cast<size_t>(rank) + 1);
    at(rank) = StartRank(mode, GetParam(), size_, rank, addresses_, seconds);
  }
  void UseRanks(int size) {
    size_ = size;
    addresses_ = FreeAddresses(size);
  }
  std::unique_ptr<ChildProcess>& at(int rank) { return ranks_[static_cast<size_t>(rank)]; }

  int size_ = 0;
  std::string addresses_;
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

TEST_P(UcxGroupProcessTest, EqualsTheLiteralCollectives) {
  for (const int ranks : {2, 4}) {
    UseRanks(ranks);
    // The host comes last.
    for (int rank = ranks - 1; rank >= 0; --rank) Start("script", rank);
    for (int rank = 0; rank < ranks; ++rank) {
      EXPECT_EQ(at(rank)->ReadLine(), "joined 1");
      EXPECT_EQ(at(rank)->ReadLine(), "same");
      EXPECT_EQ(at(rank)->Finish(), 0);
    }
  }
}

// At random moments: each time the others name the dead rank, go on without it under a new
// generation, whoever it was.
TEST_P(UcxGroupProcessTest, AKilledRankIsNamedAndTheOthersGoOn) {
  for (int victim = 0; victim < 3; ++victim) {
    UseRanks(3);
    for (int rank = 0; rank < 3; ++rank) Start("loop", rank);
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(at(rank)->ReadLine(), "joined 1");
    Rng rng(static_cast<uint64_t>(victim) + 100);
    Bell().Wait(std::chrono::milliseconds(rng.Below(300)));
    at(victim)->Kill();
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == victim) continue;
      const std::string line = at(rank)->ReadLine();
      EXPECT_THAT(line, StartsWith("failed " + std::to_string(victim) + " "));
      EXPECT_THAT(line, HasSubstr("lost rank " + std::to_string(victim) + " (127.0.0.1:"));
      EXPECT_EQ(at(rank)->ReadLine(), "joined 2");
    }
  }
}

TEST_P(UcxGroupProcessTest, AStoppedRankIsNamedAndFencedWhenItWakes) {
  for (const int victim : {0, 1}) {
    UseRanks(3);
    for (int rank = 0; rank < 3; ++rank) Start("loop", rank, rank == victim ? "1" : "60");
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(at(rank)->ReadLine(), "joined 1");
    at(victim)->Signal(SIGSTOP);
    const std::string name = "rank " + std::to_string(victim) + " (127.0.0.1:";
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == victim) continue;
      const std::string line = at(rank)->ReadLine();
      EXPECT_THAT(line, StartsWith("failed " + std::to_string(victim) + " "));
      EXPECT_THAT(line, HasSubstr(name));
      EXPECT_THAT(line, HasSubstr("within 2000 ms"));
      EXPECT_EQ(at(rank)->ReadLine(), "joined 2");
    }
    // It learns that it was given up, and finds nobody who forms a group with it.
    at(victim)->Signal(SIGCONT);
    EXPECT_THAT(at(victim)->ReadLine(), StartsWith("failed "));
    EXPECT_THAT(at(victim)->ReadLine(), StartsWith("refused "));
    // The others have not noticed: their group lives until one of them is killed.
    const int left = victim == 0 ? 1 : 0;
    at(2)->Kill();
    EXPECT_THAT(at(left)->ReadLine(), StartsWith("failed 2 "));
  }
}

TEST_P(UcxGroupProcessTest, SaysWhoIsMissing) {
  UseRanks(3);
  Start("script", 0, "1.5");
  Start("script", 2, "1");
  EXPECT_THAT(at(2)->ReadLine(), HasSubstr("the host, still waits for others"));
  const std::string line = at(0)->ReadLine();
  EXPECT_THAT(line, HasSubstr("within 1500 ms: missing rank 1 (127.0.0.1:"));
}

INSTANTIATE_TEST_SUITE_P(Tls, UcxGroupProcessTest, testing::Values("posix,tcp", "tcp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), ',', '_');
                           return name;
                         });

}  // namespace
}  // namespace baton::transport
