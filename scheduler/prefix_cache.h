#ifndef BATON_SCHEDULER_PREFIX_CACHE_H_
#define BATON_SCHEDULER_PREFIX_CACHE_H_

// Which pages of a rank hold which prefixes. A tree: a node is one full page of tokens behind the
// pages of its ancestors, and the page id where its latents stand. Nodes are found by key
// (prefix_key.h) and believed only when parent, tokens and, at a root, the salt are equal: keys
// that collide cost a miss, never a wrong token and never another tenant's page.
//
// A request holds a chain: the nodes of its first pages, from the root on, one reference on each.
// Nodes without references are kept until their pages are needed, and then go in order of their
// last use, children before parents: a chain is let go of from its end, so a parent is always used
// later than its children.
//
// Pure, one thread. Every operation costs O(pages it touches).

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/strong_id.h"
#include "scheduler/prefix_key.h"

namespace baton::scheduler {

struct PrefixNodeIdTag;
using PrefixNodeId = StrongId<PrefixNodeIdTag, uint32_t>;

// What one request holds of the cache. Belongs to one cache; to be released before it is dropped.
struct PrefixChain {
  std::string salt;
  std::vector<PrefixNodeId> nodes;
};

class PrefixCache {
 public:
  // At most `capacity` pages of `page_tokens` tokens. Tests narrow the keys by `key_mask` to make
  // them collide.
  PrefixCache(int32_t capacity, int32_t page_tokens, uint64_t key_mask = ~uint64_t{0});

  // Lengthens `chain` by the cached pages that go on with `tokens` (the whole prompt) up to
  // `max_pages` in all, and takes their references. Returns how many were added.
  int32_t Extend(PrefixChain& chain, std::span<const TokenId> tokens, int32_t max_pages);

  // Lengthens `chain` by its next page of `tokens`, whose latents stand in `page`, and returns the
  // page that the cache has for it: `page`, which is the cache's from now on, or one that another
  // request was faster with (`page` stays the caller's then). Nothing when the key is taken by
  // other tokens: the chain ends here. `generated`: the latents are in decode form.
  std::optional<PageId> Insert(PrefixChain& chain, std::span<const TokenId> tokens, PageId page,
                               bool generated);

  // Lets go of the whole chain; its pages stay.
  void Release(PrefixChain& chain);

  // Takes the `count` least recently used pages out; 0 <= count <= evictable_pages().
  std::vector<PageId> Evict(int32_t count);

  PageId page(PrefixNodeId node) const { return nodes_[node.value()].page; }
  bool generated(PrefixNodeId node) const { return nodes_[node.value()].generated; }

  int32_t cached_pages() const { return cached_; }
  int32_t evictable_pages() const { return evictable_; }  // of them: without references
  uint64_t evictions() const { return evictions_; }       // since the beginning

  // Every page, in the order of the nodes' places.
  std::vector<PageId> Pages() const;

  // Aborts when the tree contradicts itself, or its references are not those of `chains`. O(state).
  void CheckInvariants(std::span<const PrefixChain* const> chains) const;

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Node {
    PrefixKey key;
    uint32_t parent = kNone;  // kNone: a root
    std::string salt;         // of roots
    std::vector<TokenId> tokens;
    PageId page;
    bool generated = false;
    bool used = false;
    int32_t references = 0;
    int32_t children = 0;
    // Neighbours among the nodes without references, by last use.
    uint32_t older = kNone;
    uint32_t newer = kNone;
  };

  std::span<const TokenId> NextTokens(const PrefixChain& chain,
                                      std::span<const TokenId> tokens) const;
  PrefixKey NextKey(const PrefixChain& chain, std::span<const TokenId> page) const;
  bool Continues(const Node& node, const PrefixChain& chain, std::span<const TokenId> page) const;
  void Reference(uint32_t node);
  void LinkNewest(uint32_t node);
  void Unlink(uint32_t node);

  const int32_t page_tokens_;
  const uint64_t key_mask_;
  std::vector<Node> nodes_;  // [capacity]
  std::vector<uint32_t> unused_;
  std::unordered_map<PrefixKey, uint32_t, PrefixKeyHash> by_key_;  // looked up, never walked
  uint32_t oldest_ = kNone;
  uint32_t newest_ = kNone;
  int32_t cached_ = 0;
  int32_t evictable_ = 0;
  uint64_t evictions_ = 0;
};

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PREFIX_CACHE_H_
