#ifndef BATON_SCHEDULER_PAGE_POOL_H_
#define BATON_SCHEDULER_PAGE_POOL_H_

// The page ids of one rank: each is free, allocated (to the caller) or quarantined (nobody's, but a
// writer may still be at work: not to be handed out). The three counts always add up to the total;
// a page freed twice or never allocated aborts. Last freed, first handed out.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace baton::scheduler {

// Pages that hold `tokens` tokens.
constexpr int32_t PagesFor(int64_t tokens, int32_t page_tokens) {
  return static_cast<int32_t>((tokens + page_tokens - 1) / page_tokens);
}

// Tokens whose latents a request will have written when it starts with `delivered` output tokens
// and then produces at most `reserve` more of its `max_tokens` (the last token of a request is
// never written). What a decode rank sets aside at the start, and what the router expects it to.
constexpr int64_t ReservedTokens(int64_t prompt, int64_t delivered, int64_t max_tokens,
                                 int64_t reserve) {
  const int64_t ahead = max_tokens - delivered < reserve ? max_tokens - delivered : reserve;
  return prompt + delivered + (ahead > 1 ? ahead - 1 : 0);
}

class PagePool {
 public:
  explicit PagePool(int32_t total_pages);

  bool CanAllocate(int32_t count) const { return count <= free_pages(); }
  // Aborts unless CanAllocate(count).
  std::vector<PageId> Allocate(int32_t count);
  // allocated -> free
  void Free(std::span<const PageId> pages);
  // allocated -> quarantined
  void Quarantine(std::span<const PageId> pages);
  // quarantined -> free
  void EndQuarantine(std::span<const PageId> pages);

  int32_t total_pages() const { return static_cast<int32_t>(use_.size()); }
  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }
  int32_t allocated_pages() const { return total_pages() - free_pages() - quarantined_; }
  int32_t quarantined_pages() const { return quarantined_; }

  // Counts every page. O(total pages).
  void CheckConservation() const;

 private:
  enum class Use : uint8_t { kFree, kAllocated, kQuarantined };

  void Change(PageId page, Use from, Use to);

  std::vector<Use> use_;      // by page id
  std::vector<PageId> free_;  // a stack
  int32_t quarantined_ = 0;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PAGE_POOL_H_
