#include "scheduler/page_pool.h"

#include <algorithm>

#include "base/check.h"

namespace baton::scheduler {

PagePool::PagePool(int32_t total_pages) {
  BATON_CHECK_GE(total_pages, 0);
  use_.assign(static_cast<size_t>(total_pages), Use::kFree);
  free_.reserve(use_.size());
  // Lowest id on top of the stack.
  for (int32_t i = total_pages - 1; i >= 0; --i) free_.push_back(PageId(static_cast<uint32_t>(i)));
}

void PagePool::Change(PageId page, Use from, Use to) {
  BATON_CHECK_LT(page.value(), use_.size());
  Use& use = use_[page.value()];
  BATON_CHECK_EQ(static_cast<int>(use), static_cast<int>(from));
  use = to;
}

std::vector<PageId> PagePool::Allocate(int32_t count) {
  BATON_CHECK_GE(count, 0);
  BATON_CHECK_LE(count, free_pages());
  std::vector<PageId> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - static_cast<size_t>(count));
  for (const PageId page : pages) Change(page, Use::kFree, Use::kAllocated);
  return pages;
}

void PagePool::Free(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    Change(page, Use::kAllocated, Use::kFree);
    free_.push_back(page);
  }
}

void PagePool::Quarantine(std::span<const PageId> pages) {
  for (const PageId page : pages) Change(page, Use::kAllocated, Use::kQuarantined);
  quarantined_ += static_cast<int32_t>(pages.size());
}

void PagePool::EndQuarantine(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    Change(page, Use::kQuarantined, Use::kFree);
    free_.push_back(page);
  }
  quarantined_ -= static_cast<int32_t>(pages.size());
}

void PagePool::CheckConservation() const {
  const auto count = [this](Use use) { return std::count(use_.begin(), use_.end(), use); };
  BATON_CHECK_EQ(count(Use::kFree), free_pages());
  BATON_CHECK_EQ(count(Use::kQuarantined), quarantined_pages());
  BATON_CHECK_EQ(count(Use::kAllocated), allocated_pages());
  for (const PageId page : free_) BATON_CHECK(use_[page.value()] == Use::kFree);
}

}  // namespace baton::scheduler
