#include "tests/transport/group_process_conformance.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "base/random.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_P(GroupProcessTest, EqualsTheLiteralCollectives) {
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
TEST_P(GroupProcessTest, AKilledRankIsNamedAndTheOthersGoOn) {
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

TEST_P(GroupProcessTest, AStoppedRankIsNamedAndFencedWhenItWakes) {
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

TEST_P(GroupProcessTest, SaysWhoIsMissing) {
  UseRanks(3);
  Start("script", 0, "1.5");
  Start("script", 2, "1");
  EXPECT_THAT(at(2)->ReadLine(), HasSubstr("the host, still waits for others"));
  const std::string line = at(0)->ReadLine();
  EXPECT_THAT(line, HasSubstr("within 1500 ms: missing rank 1 (127.0.0.1:"));
}

}  // namespace
}  // namespace baton::transport
