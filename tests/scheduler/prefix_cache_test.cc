#include "scheduler/prefix_cache.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "scheduler/shared_pages.h"

namespace baton::scheduler {
namespace {

constexpr int32_t kTokensPerPage = 3;

std::vector<TokenId> Pages(std::initializer_list<TokenId> firsts) {
  std::vector<TokenId> tokens;
  for (const TokenId first : firsts) {
    for (TokenId i = 0; i < kTokensPerPage; ++i) tokens.push_back(first + i);
  }
  return tokens;
}

TEST(PrefixKeyTest, DependsOnEveryTokenItsPlaceAndTheSalt) {
  const auto keys = PrefixKeys(Pages({1, 2, 3}), kTokensPerPage, "");
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(PrefixKeys(Pages({1, 2, 4}), kTokensPerPage, "")[1], keys[1]);
  EXPECT_NE(PrefixKeys(Pages({1, 2, 4}), kTokensPerPage, "")[2], keys[2]);
  EXPECT_NE(PrefixKeys(Pages({2, 1, 3}), kTokensPerPage, "")[2], keys[2]);
  EXPECT_NE(PrefixKeys(Pages({1, 2, 3}), kTokensPerPage, "tenant")[0], keys[0]);
  EXPECT_NE(RootKey("ab"), RootKey("ba"));
  EXPECT_NE(RootKey(std::string(1, '\0')), RootKey(""));
  EXPECT_EQ(PrefixKeys(std::vector<TokenId>(2, 1), kTokensPerPage, "").size(), 0u);
}

TEST(PrefixKeyTest, TheLastTokenIsNeverReused) {
  EXPECT_EQ(ReusablePages(1, 4), 0);
  EXPECT_EQ(ReusablePages(4, 4), 0);
  EXPECT_EQ(ReusablePages(5, 4), 1);
  EXPECT_EQ(ReusablePages(8, 4), 1);
  EXPECT_EQ(ReusablePages(9, 4), 2);
}

class PrefixCacheTest : public testing::Test {
 protected:
  // As a request that computes all pages of `tokens` which the cache lacks, from page `first` on.
  PrefixChain Put(const std::vector<TokenId>& tokens, uint32_t first,
                  const std::string& salt = "") {
    PrefixChain chain{salt, {}};
    const auto pages = static_cast<int32_t>(tokens.size()) / kTokensPerPage;
    cache.Extend(chain, tokens, pages);
    while (static_cast<int32_t>(chain.nodes.size()) < pages) {
      EXPECT_TRUE(cache.Insert(chain, tokens, PageId(first++), false).has_value());
    }
    return chain;
  }
  int32_t Cached(const std::vector<TokenId>& tokens, const std::string& salt = "") {
    PrefixChain chain{salt, {}};
    const int32_t found = cache.Extend(chain, tokens, 100);
    cache.Release(chain);
    return found;
  }

  PrefixCache cache{8, kTokensPerPage};
};

TEST_F(PrefixCacheTest, FindsTheLongestPrefixOfWholePages) {
  PrefixChain chain = Put(Pages({1, 2, 3}), 10);
  cache.Release(chain);
  EXPECT_EQ(Cached(Pages({1, 2, 3, 4})), 3);
  EXPECT_EQ(Cached(Pages({1, 2, 9})), 2);
  EXPECT_EQ(Cached(Pages({2, 3})), 0);  // the same pages in another place are other pages
  EXPECT_EQ(Cached(Pages({1, 2}), "tenant"), 0);
  std::vector<TokenId> partial = Pages({1, 2});
  partial.pop_back();
  EXPECT_EQ(Cached(partial), 1);
  PrefixChain bounded;
  EXPECT_EQ(cache.Extend(bounded, Pages({1, 2, 3}), 2), 2);
  EXPECT_EQ(cache.page(bounded.nodes[1]), PageId(11));
  cache.Release(bounded);
}

TEST_F(PrefixCacheTest, TheFasterOfTwoRequestsGivesThePage) {
  PrefixChain first, second;
  const std::vector<TokenId> tokens = Pages({1});
  EXPECT_EQ(cache.Insert(first, tokens, PageId(3), false), PageId(3));
  EXPECT_EQ(cache.Insert(second, tokens, PageId(4), false), PageId(3));
  EXPECT_EQ(cache.cached_pages(), 1);
  cache.Release(first);
  EXPECT_EQ(cache.evictable_pages(), 0);
  cache.Release(second);
  EXPECT_EQ(cache.evictable_pages(), 1);
}

TEST_F(PrefixCacheTest, EvictsTheLeastRecentlyUsedLeavesBeforeParents) {
  PrefixChain a = Put(Pages({1, 2}), 10);     // pages 10, 11
  PrefixChain b = Put(Pages({1, 5, 6}), 20);  // 10 is shared; 20, 21
  cache.Release(b);
  EXPECT_EQ(cache.evictable_pages(), 2);  // the shared page is in use
  cache.Release(a);
  EXPECT_EQ(cache.Evict(1), std::vector<PageId>{PageId(21)});
  EXPECT_EQ(Cached(Pages({1, 5})), 2);  // used now
  EXPECT_EQ(cache.Evict(3), (std::vector<PageId>{PageId(11), PageId(20), PageId(10)}));
  EXPECT_EQ(cache.cached_pages(), 0);
  EXPECT_EQ(cache.evictions(), 4u);
}

TEST(PrefixCacheCollisionTest, OtherTokensOrSaltUnderTheSameKeyAreAMiss) {
  PrefixCache cache(8, kTokensPerPage, 0);  // every key is the same
  PrefixChain chain;
  ASSERT_TRUE(cache.Insert(chain, Pages({1, 2}), PageId(0), false).has_value());
  EXPECT_EQ(cache.Insert(chain, Pages({1, 2}), PageId(1), false), std::nullopt);
  PrefixChain other;
  EXPECT_EQ(cache.Extend(other, Pages({2}), 1), 0);
  PrefixChain tenant{"tenant", {}};
  EXPECT_EQ(cache.Extend(tenant, Pages({1}), 1), 0);
  EXPECT_EQ(cache.Insert(tenant, Pages({1}), PageId(2), false), std::nullopt);
  PrefixChain same;
  EXPECT_EQ(cache.Extend(same, Pages({1}), 1), 1);
  cache.Release(same);
  cache.Release(chain);
}

// --- against an oracle --------------------------------------------------------------------

// The same promises kept literally: a list of prefixes with their uses.
class NaiveCache {
 public:
  struct Entry {
    std::string salt;
    std::vector<TokenId> prefix;
    PageId page;
    int references = 0;
    uint64_t last_use = 0;
  };

  Entry* Find(const std::string& salt, std::span<const TokenId> prefix) {
    for (Entry& entry : entries) {
      if (entry.salt == salt &&
          std::equal(entry.prefix.begin(), entry.prefix.end(), prefix.begin(), prefix.end())) {
        return &entry;
      }
    }
    return nullptr;
  }
  PageId EvictOne() {
    auto oldest = entries.end();
    for (auto it = entries.begin(); it != entries.end(); ++it) {
      if (it->references > 0) continue;
      if (oldest == entries.end() || it->last_use < oldest->last_use) oldest = it;
    }
    const PageId page = oldest->page;
    entries.erase(oldest);
    return page;
  }

  std::vector<Entry> entries;
  uint64_t uses = 0;
};

struct LiveRequest {
  std::vector<TokenId> tokens;
  PrefixChain chain;
  std::span<const TokenId> Prefix(size_t pages) const {
    return std::span(tokens).first(pages * kTokensPerPage);
  }
};

// Few tokens and salts, so that prefixes are shared and fork.
LiveRequest RandomRequest(Rng& rng) {
  LiveRequest request;
  request.chain.salt = rng.Chance(0.2) ? "tenant" : "";
  for (uint64_t i = rng.Below(6) * kTokensPerPage + rng.Below(3); i > 0; --i) {
    request.tokens.push_back(static_cast<TokenId>(rng.Chance(0.9) ? 0 : rng.Below(3)));
  }
  return request;
}

class PrefixCacheRun {
 public:
  PrefixCacheRun(uint64_t seed, uint64_t key_mask)
      : rng(seed), exact(key_mask == ~uint64_t{0}), cache(kCapacity, kTokensPerPage, key_mask) {
    for (uint32_t i = 0; i < kCapacity; ++i) free.emplace_back(i);
  }

  void Run() {
    for (int step = 0; step < 2000; ++step) {
      switch (rng.Below(4)) {
        case 0:
          Begin();
          break;
        case 1:
        case 2:
          Compute();
          break;
        default:
          End();
      }
      std::vector<const PrefixChain*> chains;
      for (const LiveRequest& request : live) chains.push_back(&request.chain);
      cache.CheckInvariants(chains);
      if (exact) {
        ASSERT_EQ(cache.cached_pages(), static_cast<int32_t>(naive.entries.size()));
      }
    }
    EXPECT_GT(hits, 100);
    EXPECT_GT(cache.evictions(), 20u);
  }

 private:
  static constexpr uint32_t kCapacity = 12;

  // What the cache gives must be what was put there, whatever the keys did.
  void CheckPage(const LiveRequest& request, size_t index) {
    const auto prefix = request.Prefix(index + 1);
    const auto& [salt, tokens] = contents.at(cache.page(request.chain.nodes[index]));
    EXPECT_EQ(salt, request.chain.salt);
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), prefix.begin(), prefix.end()));
  }

  void Begin() {
    if (live.size() > 4) return;
    LiveRequest request = RandomRequest(rng);
    const auto limit = static_cast<int32_t>(rng.Below(7));
    const int32_t found = cache.Extend(request.chain, request.tokens, limit);
    hits += found;
    size_t expected = 0;
    while (static_cast<int32_t>(expected) < limit &&
           (expected + 1) * kTokensPerPage <= request.tokens.size() &&
           naive.Find(request.chain.salt, request.Prefix(expected + 1)) != nullptr) {
      ++expected;
    }
    if (exact) {
      ASSERT_EQ(static_cast<size_t>(found), expected);
    } else {
      ASSERT_LE(static_cast<size_t>(found), expected);
    }
    for (size_t i = 0; i < request.chain.nodes.size(); ++i) {
      CheckPage(request, i);
      ++naive.Find(request.chain.salt, request.Prefix(i + 1))->references;
    }
    live.push_back(std::move(request));
  }

  void Compute() {
    if (live.empty()) return;
    LiveRequest& request = live[rng.Below(live.size())];
    const size_t index = request.chain.nodes.size();
    if ((index + 1) * kTokensPerPage > request.tokens.size() || !MakeRoom()) return;
    const PageId page = free.back();
    const auto prefix = request.Prefix(index + 1);
    NaiveCache::Entry* entry = naive.Find(request.chain.salt, prefix);
    const auto cached = cache.Insert(request.chain, request.tokens, page, false);
    if (!cached.has_value()) {
      ASSERT_FALSE(exact);
      return;
    }
    if (entry == nullptr) {
      ASSERT_EQ(*cached, page);
      free.pop_back();
      contents[page] = {request.chain.salt, {prefix.begin(), prefix.end()}};
      naive.entries.push_back({request.chain.salt, {prefix.begin(), prefix.end()}, page, 1, 0});
    } else {
      ASSERT_EQ(*cached, entry->page);
      ++entry->references;
    }
    CheckPage(request, index);
  }

  bool MakeRoom() {
    if (!free.empty()) return true;
    if (cache.evictable_pages() == 0) return false;
    const PageId page = cache.Evict(1).front();
    EXPECT_EQ(page, naive.EvictOne());
    contents.erase(page);
    free.push_back(page);
    return true;
  }

  void End() {
    if (live.empty()) return;
    const size_t which = rng.Below(live.size());
    LiveRequest request = std::move(live[which]);
    live.erase(live.begin() + static_cast<ptrdiff_t>(which));
    for (size_t i = request.chain.nodes.size(); i > 0; --i) {
      NaiveCache::Entry& entry = *naive.Find(request.chain.salt, request.Prefix(i));
      if (--entry.references == 0) entry.last_use = ++naive.uses;
    }
    cache.Release(request.chain);
  }

  Rng rng;
  const bool exact;
  PrefixCache cache;
  NaiveCache naive;
  std::vector<PageId> free;
  std::map<PageId, std::pair<std::string, std::vector<TokenId>>> contents;
  std::vector<LiveRequest> live;
  int hits = 0;
};

class PrefixCachePropertyTest : public testing::TestWithParam<uint64_t> {};

TEST_P(PrefixCachePropertyTest, DoesWhatTheNaiveOneDoes) {
  PrefixCacheRun(GetParam(), ~uint64_t{0}).Run();
}
TEST_P(PrefixCachePropertyTest, CollidingKeysCostHitsAndNothingElse) {
  PrefixCacheRun(GetParam(), 0x7).Run();
}

INSTANTIATE_TEST_SUITE_P(Seeds, PrefixCachePropertyTest, testing::Range<uint64_t>(1, 21));

// --- pages and cache under one account ----------------------------------------------------

class SharedPagesTest : public testing::Test {
 protected:
  void Check(std::vector<const PageTable*> live, std::vector<const PageTable*> quarantined = {}) {
    shared.CheckInvariants(live, quarantined);
  }
  SharedPages shared{6, kTokensPerPage, true};
};

TEST_F(SharedPagesTest, CachedPagesCountAsFreeUntilSomebodyNeedsThem) {
  const std::vector<TokenId> tokens = Pages({1, 2, 3, 4});
  PageTable first;
  shared.Grow(first, 4);
  EXPECT_EQ(shared.free_pages(), 2);
  shared.Publish(first, tokens, 3, false, false);
  Check({&first});
  shared.Free(first);
  EXPECT_EQ(shared.free_pages(), 6);
  EXPECT_EQ(shared.cached_pages(), 3);

  PageTable second = shared.Find(tokens, 2, "");
  EXPECT_EQ(second.pages.size(), 2u);
  EXPECT_EQ(shared.free_pages(), 4);
  EXPECT_FALSE(shared.CanGrow(5));
  shared.Grow(second, 4);  // takes the third cached page
  EXPECT_EQ(shared.cached_pages(), 2);
  EXPECT_EQ(shared.evictions(), 1u);
  Check({&second});
  shared.Quarantine(second);
  EXPECT_EQ(second.pages.size(), 4u);
  EXPECT_EQ(shared.quarantined_pages(), 4);
  EXPECT_EQ(shared.free_pages(), 2);
  Check({}, {&second});
  shared.EndQuarantine(second);
  EXPECT_EQ(shared.free_pages(), 6);
  Check({});
}

TEST_F(SharedPagesTest, DuplicatesStayOrAreGivenUp) {
  const std::vector<TokenId> tokens = Pages({1, 2});
  PageTable first, keeps, gives;
  for (PageTable* table : {&first, &keeps, &gives}) shared.Grow(*table, 2);
  shared.Publish(first, tokens, 2, false, false);
  shared.Publish(keeps, tokens, 2, false, false);
  shared.Publish(gives, tokens, 2, false, true);
  EXPECT_EQ(shared.free_pages(), 2);
  EXPECT_NE(keeps.pages, first.pages);
  EXPECT_EQ(gives.pages, first.pages);
  Check({&first, &keeps, &gives});
  shared.Free(first);
  shared.Free(gives);
  EXPECT_EQ(shared.free_pages(), 2);  // the cached ones are part of a chain in use
  shared.Free(keeps);
  EXPECT_EQ(shared.free_pages(), 6);
  Check({});
}

TEST_F(SharedPagesTest, PagesThatWereCachedMeanwhileReplaceOwnOnes) {
  const std::vector<TokenId> tokens = Pages({1, 2, 3});
  PageTable first, second;
  shared.Grow(first, 3);
  shared.Grow(second, 3);
  shared.Publish(first, tokens, 2, true, false);
  EXPECT_EQ(shared.FindMore(second, tokens, 2), 2);
  EXPECT_EQ(second.pages[0], first.pages[0]);
  EXPECT_EQ(shared.GeneratedPages(second), 2);
  EXPECT_EQ(shared.free_pages(), 2);
  Check({&first, &second});
  shared.Free(first);
  shared.Free(second);
  Check({});
}

TEST_F(SharedPagesTest, WithoutCacheNothingIsKept) {
  SharedPages plain(4, kTokensPerPage, false);
  const std::vector<TokenId> tokens = Pages({1, 2});
  PageTable table = plain.Find(tokens, 2, "");
  plain.Grow(table, 2);
  plain.Publish(table, tokens, 2, false, false);
  plain.Free(table);
  EXPECT_EQ(plain.cached_pages(), 0);
  EXPECT_EQ(plain.Find(tokens, 2, "").pages.size(), 0u);
}

}  // namespace
}  // namespace baton::scheduler
