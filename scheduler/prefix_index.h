#ifndef BATON_SCHEDULER_PREFIX_INDEX_H_
#define BATON_SCHEDULER_PREFIX_INDEX_H_

// What a router believes to be cached on one worker: the keys (prefix_key.h) of the prompts that it
// sent there, the most recently used ones, as many as the worker says that it keeps. A guess: other
// routers' work and the worker's evictions show only in that number. Being wrong costs time, never
// a token. Pure, one thread.
//
// A prompt's keys are used from its last to its first, so a parent is always younger than its
// children and what is dropped is dropped from the ends: a key that is present has all its
// ancestors, and the longest known prefix is found by bisection.

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>

#include "scheduler/prefix_key.h"

namespace baton::scheduler {

class PrefixIndex {
 public:
  // How many of a prompt's first pages are known. O(log(pages)).
  int32_t Match(std::span<const PrefixKey> keys) const;

  // The worker is about to hold these. O(pages).
  void Add(std::span<const PrefixKey> keys);

  // Drops the least recently used keys until at most `pages` are left.
  void ShrinkTo(int64_t pages);

  size_t size() const { return places_.size(); }

  // Aborts when the two structures differ. O(state).
  void CheckInvariants() const;

 private:
  std::list<PrefixKey> by_use_;  // oldest first
  // Looked up, never walked.
  std::unordered_map<PrefixKey, std::list<PrefixKey>::iterator, PrefixKeyHash> places_;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PREFIX_INDEX_H_
