// What a router believes to be cached where, and how that weighs against load.

#include <algorithm>
#include <set>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/prefix_index.h"
#include "tests/scheduler/router_fixture.h"

namespace baton::scheduler {
namespace {

std::vector<TokenId> Family(TokenId first, int tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(first * 1000 + i);
  return prompt;
}

TEST(PrefixIndexTest, KnowsPrefixesAndForgetsTheirEndsFirst) {
  PrefixIndex index;
  const auto a = PrefixKeys(Family(1, 16), 4, "");
  const auto b = PrefixKeys(Family(2, 8), 4, "");
  EXPECT_EQ(index.Match(a), 0);
  index.Add(a);
  index.Add(b);
  EXPECT_EQ(index.Match(a), 4);
  EXPECT_EQ(index.Match(std::span(a).first(2)), 2);
  index.ShrinkTo(5);
  EXPECT_EQ(index.Match(a), 3);
  EXPECT_EQ(index.Match(b), 2);
  index.Add(std::span(a).first(2));  // used again
  index.ShrinkTo(3);
  EXPECT_EQ(index.Match(a), 2);
  EXPECT_EQ(index.Match(b), 1);
  index.ShrinkTo(-1);
  EXPECT_EQ(index.size(), 0u);
}

TEST(PrefixIndexTest, BisectionFindsWhatAWalkWould) {
  Rng rng(3);
  PrefixIndex index;
  for (int step = 0; step < 3000; ++step) {
    std::vector<TokenId> tokens;
    for (uint64_t i = rng.Below(20); i > 0; --i) {
      tokens.push_back(static_cast<TokenId>(rng.Below(10) == 0));
    }
    const auto keys = PrefixKeys(tokens, 2, rng.Chance(0.2) ? "salt" : "");
    int32_t walked = 0;
    while (walked < static_cast<int32_t>(keys.size()) &&
           index.Match(std::span(keys).subspan(static_cast<size_t>(walked), 1)) == 1) {
      ++walked;
    }
    EXPECT_EQ(index.Match(keys), walked);
    if (rng.Chance(0.5)) index.Add(keys);
    if (rng.Chance(0.1)) index.ShrinkTo(static_cast<int64_t>(rng.Below(30)));
    index.CheckInvariants();
  }
}

class RouterPrefixTest : public RouterTest {
 protected:
  static PrefillStatus Caching(int64_t queued = 0, int32_t cached_pages = 20) {
    PrefillStatus status = Prefill(4, queued);
    status.caches_prefixes = true;
    status.cached_pages = cached_pages;
    return status;
  }
  static DecodeStatus CachingDecode(int32_t free_pages = 20, int32_t cached_pages = 20) {
    DecodeStatus status = Decode(1010, free_pages);
    status.starts_received = 1000;
    status.caches_prefixes = true;
    status.cached_pages = cached_pages;
    return status;
  }
  Arrived Arrive(uint64_t id, std::vector<TokenId> prompt) {
    Arrived arrived = RouterTest::Arrive(id);
    arrived.prompt = std::move(prompt);
    return arrived;
  }
  // The attempt runs to its end.
  void Finish(uint64_t id, WorkerId rank = kDecodeA) {
    DecodeUpdated update;
    update.worker = rank;
    update.update.chunks = {Chunk(Key(id), 0, {5})};
    update.update.ends = {End(Key(id), EndKind::kFinished)};
    update.update.released = {Key(id)};
    update.update.status = CachingDecode();
    update.received_at = h.now;
    h.Step({update});
  }
  void JoinTwoPrefill() {
    h.Step(
        {Join(kDecodeA, CachingDecode()), Join(kPrefillA, Caching(4)), Join(kPrefillB, Caching())});
  }
};

TEST_F(RouterPrefixTest, TheNextPromptOfAFamilyGoesWhereTheFirstWas) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pb");  // less queued
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, Caching(12)}});
  h.Step({Arrive(2, Family(1, 19))});  // 12 queued + 3 new against 4 queued + 19
  EXPECT_EQ(OnlyStart().request.prefill_address, "pb");
  Finish(2);
  h.Step({Arrive(3, Family(2, 19))});  // of another family
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, ALongerQueueOutweighsTheCache) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, Caching(30)}});
  h.Step({Arrive(2, Family(1, 19))});  // 30 + 3 against 4 + 19
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, ABusyWorkerIsNotWaitedFor) {
  PrefillStatus full = Caching();
  full.running = full.slots;
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, full}});
  h.Step({Arrive(2, Family(1, 17))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, OnlyTokensToComputeCountAsBusy) {
  h.Step({Join(kDecodeA, CachingDecode()), Join(kPrefillA, Caching()), Join(kPrefillB, Caching())});
  h.Step({Arrive(1, Family(1, 17))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
  Finish(1);
  h.Step({Arrive(2, Family(1, 18))});  // two tokens to compute on A
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
  h.Step({Arrive(3, Family(2, 3))});  // 2 + 3 against 3
  EXPECT_EQ(OnlyStart().request.prefill_address, "pb");
  h.Step({Arrive(4, Family(3, 1))});  // 2 + 1 against 3 + 1
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, AWorkerThatKeepsLessIsBelievedToKeepLess) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, Caching(12, 0)}});  // evicted all
  h.Step({Arrive(2, Family(1, 19))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, ARestartedWorkerHasNothing) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({Join(kPrefillB, Caching(12))});
  h.Step({Arrive(2, Family(1, 19))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, SaltsShareNothing) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, Caching(12)}});
  Arrived salted = Arrive(2, Family(1, 19));
  salted.cache_salt = "tenant";
  h.Step({salted});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
  EXPECT_EQ(OnlyStart().request.cache_salt, "tenant");
}

TEST_F(RouterPrefixTest, WorkersWithoutCacheAreChosenByQueueAlone) {
  h.Step({Join(kDecodeA), Join(kPrefillA, Prefill(4, 4)), Join(kPrefillB, Prefill())});
  h.Step({Arrive(1, Family(1, 17))});
  Finish(1);
  h.Step({PrefillUpdated{kPrefillB, Prefill(4, 12)}});
  h.Step({Arrive(2, Family(1, 19))});
  EXPECT_EQ(OnlyStart().request.prefill_address, "pa");
}

TEST_F(RouterPrefixTest, TheDecodeRankOfTheLastTurnIsPreferredWhileItHasRoom) {
  h.Step({Join(kDecodeA, CachingDecode(19)), Join(kDecodeB, CachingDecode(20)),
          Join(kPrefillA, Caching())});
  h.Step({Arrive(1, Family(1, 17))});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  Finish(1, kDecodeB);
  DecodeUpdated busier;
  busier.worker = kDecodeB;
  busier.update.status = CachingDecode(15);
  h.Step({busier});
  h.Step({Arrive(2, Family(1, 20))});
  EXPECT_EQ(OnlyStart().decode, kDecodeB);
  Finish(2, kDecodeB);
  busier.update.status = CachingDecode(9);  // 4 of 20 left against 14 of 20
  h.Step({busier});
  h.Step({Arrive(3, Family(1, 20))});
  EXPECT_EQ(OnlyStart().decode, kDecodeA);
}

TEST_F(RouterPrefixTest, TheResultSaysHowMuchWasCached) {
  JoinTwoPrefill();
  h.Step({Arrive(1, Family(1, 17))});
  TokenChunk chunk = Chunk(Key(1), 0, {5});
  chunk.cached_tokens = 16;
  chunk.decode_form_tokens = 4;
  h.Step({Update({chunk}, {End(Key(1), EndKind::kFinished)}, {Key(1)})});
  EXPECT_EQ(OnlyResult().cached_tokens, 16);
  EXPECT_EQ(OnlyResult().decode_form_tokens, 4);
}

}  // namespace
}  // namespace baton::scheduler
