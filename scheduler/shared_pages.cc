#include "scheduler/shared_pages.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"

namespace baton::scheduler {

SharedPages::SharedPages(int32_t total_pages, int32_t page_tokens, bool caches)
    : caches_(caches), pool_(total_pages), cache_(caches ? total_pages : 0, page_tokens) {}

PageTable SharedPages::Find(std::span<const TokenId> tokens, int32_t max_pages,
                            const std::string& salt) {
  PageTable table;
  table.chain.salt = salt;
  if (!caches_) return table;
  cache_.Extend(table.chain, tokens, max_pages);
  for (const PrefixNodeId node : table.chain.nodes) table.pages.push_back(cache_.page(node));
  return table;
}

int32_t SharedPages::FindMore(PageTable& table, std::span<const TokenId> tokens,
                              int32_t max_pages) {
  if (!caches_) return 0;
  const size_t before = table.chain.nodes.size();
  const int32_t added = cache_.Extend(table.chain, tokens, max_pages);
  for (size_t i = before; i < table.chain.nodes.size(); ++i) {
    pool_.Free(std::span(&table.pages[i], 1));
    table.pages[i] = cache_.page(table.chain.nodes[i]);
  }
  return added;
}

void SharedPages::Grow(PageTable& table, int32_t count) {
  const int32_t missing = count - pool_.free_pages();
  if (missing > 0) pool_.Free(cache_.Evict(missing));
  const std::vector<PageId> pages = pool_.Allocate(count);
  table.pages.insert(table.pages.end(), pages.begin(), pages.end());
}

void SharedPages::Publish(PageTable& table, std::span<const TokenId> tokens, int32_t count,
                          bool generated, bool give_up_duplicates) {
  if (!caches_) return;
  for (size_t i = table.chain.nodes.size(); i < static_cast<size_t>(count); ++i) {
    PageId& own = table.pages[i];
    const std::optional<PageId> cached = cache_.Insert(table.chain, tokens, own, generated);
    if (!cached.has_value()) return;
    if (*cached == own || !give_up_duplicates) continue;
    if (cache_.generated(table.chain.nodes.back()) && !generated) continue;
    pool_.Free(std::span(&own, 1));
    own = *cached;
  }
}

// The pages of the table that are not the cache's; lets go of the others.
std::vector<PageId> SharedPages::TakeOwn(PageTable& table) {
  std::vector<PageId> own;
  for (size_t i = 0; i < table.pages.size(); ++i) {
    const bool cached =
        i < table.chain.nodes.size() && cache_.page(table.chain.nodes[i]) == table.pages[i];
    if (!cached) own.push_back(table.pages[i]);
  }
  cache_.Release(table.chain);
  table.pages.clear();
  return own;
}

void SharedPages::Free(PageTable& table) { pool_.Free(TakeOwn(table)); }

void SharedPages::Quarantine(PageTable& table) {
  table.pages = TakeOwn(table);
  pool_.Quarantine(table.pages);
}

void SharedPages::EndQuarantine(PageTable& table) {
  pool_.EndQuarantine(std::exchange(table.pages, {}));
}

int32_t SharedPages::GeneratedPages(const PageTable& table) const {
  return static_cast<int32_t>(
      std::count_if(table.chain.nodes.begin(), table.chain.nodes.end(),
                    [this](PrefixNodeId node) { return cache_.generated(node); }));
}

void SharedPages::CheckInvariants(std::span<const PageTable* const> live,
                                  std::span<const PageTable* const> quarantined) const {
  pool_.CheckConservation();
  std::vector<const PrefixChain*> chains;
  for (const PageTable* table : live) chains.push_back(&table->chain);
  cache_.CheckInvariants(chains);

  std::set<PageId> held;
  for (const PageId page : cache_.Pages()) BATON_CHECK(held.insert(page).second);
  for (const PageTable* table : live) {
    BATON_CHECK_LE(table->chain.nodes.size(), table->pages.size());
    for (size_t i = 0; i < table->pages.size(); ++i) {
      const bool cached =
          i < table->chain.nodes.size() && cache_.page(table->chain.nodes[i]) == table->pages[i];
      BATON_CHECK(cached || held.insert(table->pages[i]).second);
    }
  }
  BATON_CHECK_EQ(held.size(), static_cast<size_t>(pool_.allocated_pages()));
  for (const PageTable* table : quarantined) {
    BATON_CHECK(table->chain.nodes.empty());
    for (const PageId page : table->pages) BATON_CHECK(held.insert(page).second);
  }
  BATON_CHECK_EQ(held.size(),
                 static_cast<size_t>(pool_.allocated_pages() + pool_.quarantined_pages()));
}

}  // namespace baton::scheduler
