#include "tests/transport/collectives_conformance.h"

#include <gmock/gmock.h>

#include <atomic>
#include <numeric>

#include "tests/transport/literal_collectives.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// Of waits that a failing test alone sits through.
constexpr Duration kLong = Duration::Seconds(60);
constexpr Duration kShort = Duration::Millis(300);

std::string Text(const absl::Status& status) { return std::string(status.message()); }

TEST_P(CollectivesConformance, EqualsTheLiteralCollectives) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    TestGroupOf group(fabric_.get(), ranks);
    std::vector<std::string> trouble(static_cast<size_t>(ranks));
    OnRanks(ranks, [&](int rank) {
      trouble[static_cast<size_t>(rank)] =
          RunScript(&group.at(rank), 77, ranks < 8 ? 60 : 25, kLong);
    });
    EXPECT_THAT(trouble, testing::Each("")) << ranks;
  }
}

TEST_P(CollectivesConformance, NamesARankThatDoesNotCome) {
  TestGroupOf group(fabric_.get(), 4);
  std::vector<absl::Status> results(4);
  // The one with the short deadline tells the others.
  OnRanks(4, [&](int rank) {
    if (rank == 2) return;
    const std::byte mine[8] = {};
    std::byte all[32];
    const size_t at = static_cast<size_t>(rank);
    results[at] = group.at(rank).AllGather(mine, all, rank == 1 ? kShort : kLong);
  });
  for (const int rank : {0, 1, 3}) {
    const absl::Status& status = results[static_cast<size_t>(rank)];
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(Text(status), AllOf(HasSubstr("rank 2 (host2:7000) did not take part in AllGather"),
                                    HasSubstr("within 300 ms")));
    EXPECT_THAT(group.at(rank).lost_ranks(), ElementsAre(2));
    // Later calls say the same at once.
    EXPECT_EQ(group.at(rank).Barrier(kLong), status);
    EXPECT_EQ(group.at(rank).health(), status);
  }
  // When it comes after all it is told too.
  EXPECT_THAT(Text(group.at(2).Barrier(kLong)), HasSubstr("rank 2 (host2:7000)"));
}

TEST_P(CollectivesConformance, NamesRanksWhoseCallsDiffer) {
  struct Case {
    std::function<absl::Status(Collectives&)> usual, odd;
    std::vector<std::string> words;
  };
  const std::byte data[16] = {};
  const auto gather = [&](size_t bytes) {
    return [&, bytes](Collectives& c) {
      std::vector<std::byte> into(3 * bytes);
      return c.AllGather(std::span(data).first(bytes), into, kLong);
    };
  };
  const auto broadcast = [](int root, size_t bytes) {
    return [root, bytes](Collectives& c) {
      std::vector<std::byte> into(bytes);
      return c.Broadcast(into, root, kLong);
    };
  };
  const auto reduce = [](ReduceType type, size_t bytes) {
    return [type, bytes](Collectives& c) {
      std::vector<std::byte> into(bytes);
      return c.AllReduceSum(into, type, kLong);
    };
  };
  const auto barrier = [](Collectives& c) { return c.Barrier(kLong); };
  const std::vector<Case> cases = {
      {gather(8), barrier, {"AllGather of 8 bytes", "Barrier"}},
      {gather(8), gather(16), {"AllGather of 8 bytes", "AllGather of 16 bytes"}},
      {broadcast(0, 8), broadcast(2, 8), {"from rank 0", "from rank 2"}},
      {broadcast(0, 100'000), barrier, {"Broadcast of 100000 bytes", "Barrier"}},
      {reduce(ReduceType::kF32, 8), reduce(ReduceType::kBF16, 8), {"float32", "bfloat16"}},
      {reduce(ReduceType::kF32, 100'000), reduce(ReduceType::kF32, 4), {"100000", "of 4 bytes"}},
  };
  for (const Case& c : cases) {
    TestGroupOf group(fabric_.get(), 3);
    std::vector<absl::Status> results(3);
    OnRanks(3, [&](int rank) {
      results[static_cast<size_t>(rank)] = (rank == 1 ? c.odd : c.usual)(group.at(rank));
    });
    for (const absl::Status& status : results) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      EXPECT_THAT(Text(status), HasSubstr("rank 1 (host1:7000)"));
      for (const std::string& word : c.words) EXPECT_THAT(Text(status), HasSubstr(word));
    }
  }
}

TEST_P(CollectivesConformance, NamesRanksWhoseSizesDisagree) {
  for (const size_t too_much : {size_t{1}, size_t{100'000}}) {
    TestGroupOf group(fabric_.get(), 3);
    std::vector<absl::Status> results(3);
    OnRanks(3, [&](int rank) {
      std::vector<size_t> sends(3, 10), recvs(3, 10);
      if (rank == 2) sends[0] += too_much;  // rank 0 does not expect it
      std::vector<std::byte> send(std::accumulate(sends.begin(), sends.end(), size_t{0}));
      std::vector<std::byte> recv(30);
      results[static_cast<size_t>(rank)] =
          group.at(rank).AllToAllV(send, sends, recv, recvs, kLong);
      // Who has all its data may learn of it by the next call only.
      if (results[static_cast<size_t>(rank)].ok()) {
        results[static_cast<size_t>(rank)] = group.at(rank).Barrier(kLong);
      }
    });
    for (const absl::Status& status : results) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      EXPECT_THAT(Text(status),
                  HasSubstr("rank 2 (host2:7000) sends " + std::to_string(10 + too_much) +
                            " bytes to rank 0 (host0:7000), which expects 10"));
    }
  }
}

TEST_P(CollectivesConformance, TellsAllOfAMistakeThatOneSeesAlone) {
  TestGroupOf group(fabric_.get(), 2);
  std::vector<absl::Status> results(2);
  OnRanks(2, [&](int rank) {
    std::vector<std::byte> mine(4), all(rank == 0 ? 7 : 8);
    results[static_cast<size_t>(rank)] = group.at(rank).AllGather(mine, all, kLong);
  });
  for (const absl::Status& status : results) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Text(status), AllOf(HasSubstr("rank 0 (host0:7000)"), HasSubstr("buffer of 7")));
  }
}

TEST_P(CollectivesConformance, AbortReachesEverybody) {
  TestGroupOf group(fabric_.get(), 3);
  std::vector<absl::Status> results(3);
  OnRanks(3, [&](int rank) {
    if (rank == 2) group.at(rank).Abort(absl::ResourceExhaustedError("out of pages"));
    results[static_cast<size_t>(rank)] = group.at(rank).Barrier(kLong);
  });
  for (const absl::Status& status : results) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(Text(status), "rank 2 (host2:7000): out of pages");
  }
  EXPECT_THAT(group.at(0).lost_ranks(), ElementsAre());
}

TEST_P(CollectivesConformance, ARankThatLeavesSpoilsOnlyLaterCalls) {
  TestGroupOf group(fabric_.get(), 3);
  std::vector<std::string> trouble(3);
  std::vector<absl::Status> results(3);
  OnRanks(3, [&](int rank) {
    const size_t at = static_cast<size_t>(rank);
    trouble[at] = RunScript(&group.at(rank), 5, 30, kLong);
    if (rank == 1) return group.members[at].reset();
    results[at] = group.at(rank).Barrier(kLong);
  });
  EXPECT_THAT(trouble, testing::Each(""));
  for (const int rank : {0, 2}) {
    const absl::Status& status = results[static_cast<size_t>(rank)];
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    // The first to notice may have left in turn.
    EXPECT_THAT(Text(status), HasSubstr("has left the group"));
    EXPECT_THAT(group.at(rank).lost_ranks(), ElementsAre(1));
  }
}

TEST_P(CollectivesConformance, ABreakIsNoticedOutsideOfCalls) {
  Bell bell;
  TestGroupOf group(fabric_.get(), 2);
  group.at(0).SetWakeup([&] { bell.Ring(); });
  group.members[1].reset();
  EXPECT_TRUE(bell.Wait(std::chrono::seconds(60)));
  EXPECT_EQ(group.at(0).health().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(group.at(0).lost_ranks(), ElementsAre(1));
}

TEST_P(CollectivesConformance, RingWakesWhoIsNotYetInTheCall) {
  Bell bell;
  TestGroupOf group(fabric_.get(), 2);
  group.at(1).SetWakeup([&] { bell.Ring(); });
  OnRanks(2, [&](int rank) {
    for (int round = 0; round < 20; ++round) {
      if (rank == 0) group.at(0).Ring();
      while (rank == 1 && !group.at(1).PeerWaits()) bell.Wait(std::chrono::seconds(60));
      EXPECT_TRUE(group.at(rank).Barrier(kLong).ok());
      // What was announced has been met: nothing more to do for it.
      EXPECT_TRUE(group.at(rank).Barrier(kLong).ok());
      EXPECT_FALSE(rank == 0 && group.at(0).PeerWaits());
    }
  });
  EXPECT_FALSE(group.at(1).PeerWaits());
}

TEST_P(CollectivesConformance, RanksMayComeInAnyOrder) {
  for (const int late : {0, 1, 3}) {
    auto rendezvous = fabric_->NewRendezvous(4, late == 1);
    std::atomic<int> waiting = 0;
    OnRanks(4, [&](int rank) {
      while (rank == late && waiting < 3) std::this_thread::yield();
      if (rank == late) Bell().Wait(std::chrono::milliseconds(150));
      ++waiting;
      auto group = rendezvous[static_cast<size_t>(rank)]->Join(TestGroup(4, rank));
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ((*group)->rank(), rank);
      EXPECT_EQ((*group)->world_size(), 4);
      EXPECT_EQ(RunScript(group->get(), 3, 10, kLong), "");
    });
  }
}

TEST_P(CollectivesConformance, SaysWhoIsMissing) {
  auto rendezvous = fabric_->NewRendezvous(4);
  OnRanks(4, [&](int rank) {
    if (rank == 1 || rank == 3) return;
    GroupOptions options = TestGroup(4, rank);
    // The host gives up first, and those who wait for it with it.
    options.timeout = Duration::Millis(rank == 0 ? 300 : 600);
    const auto group = rendezvous[static_cast<size_t>(rank)]->Join(options);
    EXPECT_EQ(group.status().code(), absl::StatusCode::kDeadlineExceeded) << group.status();
    if (rank != 0) return;
    EXPECT_THAT(Text(group.status()), AllOf(HasSubstr("missing rank 1"), HasSubstr("and rank 3"),
                                            HasSubstr("within 300 ms"), HasSubstr("'test'")));
  });
}

TEST_P(CollectivesConformance, RefusesRanksThatDisagreeWithTheHost) {
  struct Case {
    std::function<void(GroupOptions*)> change;
    std::string words;
  };
  const std::vector<Case> cases = {
      {[](GroupOptions* o) { o->model_hash = "m2"; }, "the model hash is 'm2' there and 'm1' here"},
      {[](GroupOptions* o) { o->world_size = 9; }, "the group's size is 9 there and 2 here"},
      {[](GroupOptions* o) { o->revision = "r2"; }, "the software revision is 'r2' there"},
      {[](GroupOptions* o) { o->reduce_part_bytes = 8; }, "reduce_part_bytes is 8 there"},
  };
  auto rendezvous = fabric_->NewRendezvous(2, false);
  for (const Case& c : cases) {
    OnRanks(2, [&](int rank) {
      if (rank == 0) {
        // The host outlasts the stranger and takes the right one.
        const auto group = rendezvous[0]->Join(TestGroup(2, 0));
        EXPECT_TRUE(group.ok()) << group.status();
        return;
      }
      GroupOptions wrong = TestGroup(2, 1);
      c.change(&wrong);
      const auto refused = rendezvous[1]->Join(wrong);
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
      EXPECT_THAT(Text(refused.status()),
                  AllOf(HasSubstr(c.words), HasSubstr("rank 1 (host1:7000) does not fit rank 0")));
      const auto group = rendezvous[1]->Join(TestGroup(2, 1));
      EXPECT_TRUE(group.ok()) << group.status();
    });
  }
}

TEST_P(CollectivesConformance, FormsAgainUnderANewGeneration) {
  TestGroupOf group(fabric_.get(), 3);
  uint64_t generation = group.at(0).generation();
  for (int round = 0; round < 3; ++round) {
    OnRanks(3, [&](int rank) {
      const absl::Status status = rank == round ? absl::OkStatus() : group.at(rank).Barrier(kShort);
      EXPECT_EQ(status.ok(), rank == round);
    });
    group.Form([](int rank) { return TestGroup(3, rank); });
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_GT(group.at(rank).generation(), generation);
      EXPECT_EQ(group.at(rank).generation(), group.at(0).generation());
    }
    generation = group.at(0).generation();
    OnRanks(3, [&](int rank) { EXPECT_EQ(RunScript(&group.at(rank), 9, 20, kLong), ""); });
  }
}

TEST_P(CollectivesConformance, FormsWithoutAbsentRanksAndTakesThemBackIn) {
  TestGroupOf group(fabric_.get(), 4);
  group.members[0].reset();  // the host
  group.members[2].reset();
  const auto survivor = [](int rank) {
    GroupOptions options = TestGroup(4, rank);
    options.absent_ranks = {0, 2};
    return options;
  };
  OnRanks(4, [&](int rank) {
    if (rank % 2 == 0) return;
    const size_t at = static_cast<size_t>(rank);
    group.members[at] = group.rendezvous[at]->Join(survivor(rank)).value();
    EXPECT_FALSE(group.at(rank).is_present(2));
    EXPECT_EQ(group.at(rank).world_size(), 4);
    EXPECT_EQ(RunScript(&group.at(rank), 11, 40, kLong), "");
    std::vector<std::byte> data(1);
    if (rank == 1) {
      EXPECT_EQ(group.at(1).Broadcast(data, 2, kLong).code(), absl::StatusCode::kInvalidArgument);
    }
  });
  group.Form([](int rank) { return TestGroup(4, rank); });
  OnRanks(4, [&](int rank) { EXPECT_EQ(RunScript(&group.at(rank), 12, 20, kLong), ""); });
}

TEST_P(CollectivesConformance, TheHostSeesWhoWantsIn) {
  auto rendezvous = fabric_->NewRendezvous(3);
  std::vector<std::unique_ptr<Collectives>> members(3);
  OnRanks(3, [&](int rank) {
    const size_t at = static_cast<size_t>(rank);
    if (rank < 2) {
      GroupOptions options = TestGroup(3, rank);
      options.absent_ranks = {2};
      members[at] = rendezvous[at]->Join(options).value();
    }
    if (rank == 0) {
      while (rendezvous[0]->Knocking() != std::vector<int>{2}) std::this_thread::yield();
      members[0]->Abort(absl::AbortedError("rank 2 is back"));
    }
    if (rank == 1) {
      EXPECT_FALSE(members[1]->Barrier(kLong).ok());
    }
    members[at] = rendezvous[at]->Join(TestGroup(3, rank)).value();
    EXPECT_EQ(RunScript(members[at].get(), 21, 10, kLong), "");
  });
}

}  // namespace
}  // namespace baton::transport
