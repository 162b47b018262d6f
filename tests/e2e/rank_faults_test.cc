// Ranks of every kind are killed and stopped at random moments, seed after seed, in one cluster of
// processes over UCX: two prefill workers of two ranks, a decode worker of three that has
// every expert twice. Every stream ends complete, with the tokens of an undisturbed run; what has
// ended is started again and taken back in.
//
// RANK_FAULT_SEEDS: how many seeds (default below), from RANK_FAULT_FIRST_SEED on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/e2e/cluster.h"
#include "tests/sanitized.h"

namespace baton::e2e {
namespace {

using ::testing::ElementsAreArray;

constexpr int kDecodeRanks = 3;
constexpr int kRequests = 6;
constexpr double kStopSeconds = 3;  // longer than group.timeout_ms
constexpr double kRecoverySeconds = 60;
constexpr int kDefaultSeeds = kSanitizedTestScale > 1 ? 4 : 25;

int FromEnvironment(const char* name, int otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

// Who is harmed, how, and when: milliseconds after the requests were sent.
struct Fault {
  bool prefill = false;
  size_t worker = 0;
  size_t rank = 0;
  bool stop = false;
  int after_ms = 0;

  std::string Text() const {
    return std::string(stop ? "stop " : "kill ") + (prefill ? "prefill-" : "decode-") +
           std::to_string(worker) + "." + std::to_string(rank) + " after " +
           std::to_string(after_ms) + " ms";
  }
};

Fault FaultOf(uint64_t seed, uint64_t longest_ms) {
  Rng random(seed);
  Fault fault;
  fault.prefill = random.Below(2) == 0;
  fault.worker = fault.prefill ? random.Below(2) : 0;
  fault.rank = random.Below(fault.prefill ? 2 : kDecodeRanks);
  fault.stop = random.Below(3) == 0;
  fault.after_ms = static_cast<int>(random.Below(longest_ms));
  return fault;
}

// Prompts of their own in every round, so that no cached prefix spares the prefill workers.
std::vector<server::ClientRequest> RequestsOf(uint64_t seed) {
  std::vector<server::ClientRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    server::ClientRequest request;
    request.text = "Round " + std::to_string(seed) + ", part " + std::to_string(i) + ". ";
    const int repeats = (1 + i % 3 * 8) / (kSanitizedTestScale > 1 ? 2 : 1);
    for (int j = 0; j < repeats; ++j) request.text += "The files are read in the order given. ";
    request.max_tokens = (60 + 60 * (i % 2)) / (kSanitizedTestScale > 1 ? 2 : 1);
    request.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    request.seed = seed;
    request.ignore_eos = true;
    requests.push_back(request);
  }
  return requests;
}

class RankFaults : public ::testing::Test {
 protected:
  RankFaults()
      : reference_({}),
        cluster_({.prefill_workers = 2,
                  .prefill_ranks = 2,
                  .decode_ranks = kDecodeRanks,
                  .prefill_flags = {"--prefill.chunk_tokens=64"},
                  .decode_flags = {
                      "--decode.redundant_experts=16", "--decode.rebalance.survive_rank_loss=true",
                      "--decode.rebalance.interval_ms=500", "--decode.rebalance.min_gain=0.01"}}) {}

  BatonProcess& Victim(const Fault& fault) {
    return fault.prefill ? cluster_.prefill(fault.worker, fault.rank)
                         : cluster_.decode(fault.worker, fault.rank);
  }

  // After a fault: what it has ended is started again, and everything is as before. A rank that was
  // stopped ends when it wakes if its group has missed it; who was idle has missed nobody.
  void Recover(const Fault& fault) {
    if (fault.stop) {
      Eventually(kStopSeconds, [&] { return GivenUp(fault); });
      Victim(fault).Signal(SIGCONT);
    } else {
      EXPECT_EQ(Victim(fault).Wait(), 128 + SIGKILL);
    }
    EXPECT_TRUE(Eventually(kRecoverySeconds, [&] {
      cluster_.RestartEnded();
      return AllIsWell();
    }));
  }

  bool GivenUp(const Fault& fault) {
    if (fault.prefill) return cluster_.prefill(fault.worker, 1 - fault.rank).HasEnded();
    return cluster_.Experts(fault.rank == 0 ? 1 : 0, "masked_ranks") == 1;
  }

  bool AllIsWell() {
    for (size_t worker = 0; worker < 2; ++worker) {
      if (!cluster_.RouterSees("prefill", cluster_.prefill(worker))) return false;
    }
    for (size_t rank = 0; rank < kDecodeRanks; ++rank) {
      if (!cluster_.RouterSees("decode", cluster_.decode(0, rank)) ||
          cluster_.Experts(rank, "masked_ranks") != 0 ||
          cluster_.Experts(rank, "on_one_rank") != 0) {
        return false;
      }
    }
    return true;
  }

  std::string Logs() {
    std::string logs = "router:\n" + cluster_.router().Log();
    for (size_t rank = 0; rank < kDecodeRanks; ++rank) {
      logs += "decode " + std::to_string(rank) + ":\n" + cluster_.decode(0, rank).Log();
    }
    return logs;
  }

  Cluster reference_;  // one rank of each kind, never disturbed
  Cluster cluster_;
};

TEST_F(RankFaults, EveryStreamIsCompleteAndHasTheSameTokens) {
  ASSERT_TRUE(reference_.WaitUntilReady()) << reference_.router().Log();
  ASSERT_TRUE(cluster_.WaitUntilReady()) << Logs();
  ASSERT_TRUE(Eventually(kRecoverySeconds, [&] { return AllIsWell(); })) << Logs();
  const int first = FromEnvironment("RANK_FAULT_FIRST_SEED", 0);
  const int seeds = FromEnvironment("RANK_FAULT_SEEDS", kDefaultSeeds);
  for (int seed = first; seed < first + seeds; ++seed) {
    const Fault fault = FaultOf(static_cast<uint64_t>(seed), 600 * kSanitizedTestScale);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + fault.Text());
    const std::vector<server::ClientRequest> requests = RequestsOf(static_cast<uint64_t>(seed));
    const std::vector<Tokens> expected = AllAtOnce(reference_, requests, [] {});
    const std::vector<Tokens> got = AllAtOnce(cluster_, requests, [&] {
      PauseMillis(fault.after_ms);
      Victim(fault).Signal(fault.stop ? SIGSTOP : SIGKILL);
    });
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_THAT(got[i], ElementsAreArray(expected[i])) << "request " << i;
    }
    Recover(fault);
    if (HasFailure()) FAIL() << "seed " << seed << ", " << fault.Text() << "\n" << Logs();
  }
}

}  // namespace
}  // namespace baton::e2e
