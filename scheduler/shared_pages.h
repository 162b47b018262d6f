#ifndef BATON_SCHEDULER_SHARED_PAGES_H_
#define BATON_SCHEDULER_SHARED_PAGES_H_

// The page ids of one rank and what finished requests left in them: PagePool and PrefixCache under
// one account. A page is free, a request's own, cached (shared by any number of requests, or by
// none), or quarantined. Cached pages that nobody uses count as free: whoever needs pages gets
// them, the least recently used first. One thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "scheduler/page_pool.h"
#include "scheduler/prefix_cache.h"

namespace baton::scheduler {

// The pages of one sequence, in order of position. The first chain.nodes.size() of them hold what
// the cache's nodes say; such a page is the cache's, or a duplicate of the request's own (another
// request was faster).
struct PageTable {
  std::vector<PageId> pages;
  PrefixChain chain;
};

class SharedPages {
 public:
  // Without `caches` nothing is ever found or kept.
  SharedPages(int32_t total_pages, int32_t page_tokens, bool caches);

  // A table with the cached pages of `tokens`, at most `max_pages` of them.
  PageTable Find(std::span<const TokenId> tokens, int32_t max_pages, const std::string& salt);
  // The same for a table that has pages already: the next ones, as far as they are cached and
  // nothing of them has been computed, are swapped for the cached ones. Returns how many.
  int32_t FindMore(PageTable& table, std::span<const TokenId> tokens, int32_t max_pages);

  bool CanGrow(int32_t count) const { return count <= free_pages(); }
  // Appends `count` pages of the request's own. Aborts unless CanGrow(count).
  void Grow(PageTable& table, int32_t count);

  // The first `count` pages of the table hold the latents of `tokens` and will not change: whoever
  // begins with the same tokens may use them from now on. `generated`: those that are new to the
  // cache are in decode form. A page that the cache has already stays the request's own; with
  // `give_up_duplicates` it is swapped for the cached one (nobody may be reading it then), unless
  // that is in decode form and this one is not.
  void Publish(PageTable& table, std::span<const TokenId> tokens, int32_t count, bool generated,
               bool give_up_duplicates);

  // Ends the table: its own pages come free, the cache keeps the others.
  void Free(PageTable& table);
  // The same, but its own pages are quarantined and stay in the table until EndQuarantine.
  void Quarantine(PageTable& table);
  void EndQuarantine(PageTable& table);

  bool caches() const { return caches_; }
  int32_t total_pages() const { return pool_.total_pages(); }
  int32_t free_pages() const { return pool_.free_pages() + cache_.evictable_pages(); }
  int32_t quarantined_pages() const { return pool_.quarantined_pages(); }
  int32_t cached_pages() const { return cache_.cached_pages(); }
  uint64_t evictions() const { return cache_.evictions(); }
  // Of the cached pages that the table uses, those in decode form.
  int32_t GeneratedPages(const PageTable& table) const;

  // Aborts unless free + own + cached + quarantined is the total, with `live` and `quarantined` all
  // the tables that there are, and every reference counted. O(state).
  void CheckInvariants(std::span<const PageTable* const> live,
                       std::span<const PageTable* const> quarantined) const;

 private:
  std::vector<PageId> TakeOwn(PageTable& table);

  const bool caches_;
  PagePool pool_;
  PrefixCache cache_;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_SHARED_PAGES_H_
