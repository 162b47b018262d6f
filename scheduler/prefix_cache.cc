#include "scheduler/prefix_cache.h"

#include <algorithm>

#include "base/check.h"

namespace baton::scheduler {

PrefixCache::PrefixCache(int32_t capacity, int32_t page_tokens, uint64_t key_mask)
    : page_tokens_(page_tokens), key_mask_(key_mask), nodes_(static_cast<size_t>(capacity)) {
  BATON_CHECK_GT(page_tokens, 0);
  unused_.reserve(nodes_.size());
  for (uint32_t i = static_cast<uint32_t>(capacity); i > 0; --i) unused_.push_back(i - 1);
}

// --- looking up ---------------------------------------------------------------------------

// The tokens of the page behind the chain; empty when `tokens` do not fill it.
std::span<const TokenId> PrefixCache::NextTokens(const PrefixChain& chain,
                                                 std::span<const TokenId> tokens) const {
  const auto page = static_cast<size_t>(page_tokens_);
  const size_t begin = chain.nodes.size() * page;
  if (begin + page > tokens.size()) return {};
  return tokens.subspan(begin, page);
}

PrefixKey PrefixCache::NextKey(const PrefixChain& chain, std::span<const TokenId> page) const {
  const PrefixKey parent =
      chain.nodes.empty() ? RootKey(chain.salt) : nodes_[chain.nodes.back().value()].key;
  PrefixKey key = ChildKey(parent, page);
  key.high &= key_mask_;
  key.low &= key_mask_;
  return key;
}

bool PrefixCache::Continues(const Node& node, const PrefixChain& chain,
                            std::span<const TokenId> page) const {
  if (chain.nodes.empty()) {
    if (node.parent != kNone || node.salt != chain.salt) return false;
  } else if (node.parent != chain.nodes.back().value()) {
    return false;
  }
  return std::equal(node.tokens.begin(), node.tokens.end(), page.begin(), page.end());
}

int32_t PrefixCache::Extend(PrefixChain& chain, std::span<const TokenId> tokens,
                            int32_t max_pages) {
  int32_t added = 0;
  while (static_cast<int32_t>(chain.nodes.size()) < max_pages) {
    const std::span<const TokenId> page = NextTokens(chain, tokens);
    if (page.empty()) break;
    const auto found = by_key_.find(NextKey(chain, page));
    if (found == by_key_.end() || !Continues(nodes_[found->second], chain, page)) break;
    Reference(found->second);
    chain.nodes.emplace_back(found->second);
    ++added;
  }
  return added;
}

// --- coming and going ---------------------------------------------------------------------

std::optional<PageId> PrefixCache::Insert(PrefixChain& chain, std::span<const TokenId> tokens,
                                          PageId page, bool generated) {
  const std::span<const TokenId> content = NextTokens(chain, tokens);
  BATON_CHECK(!content.empty());
  const PrefixKey key = NextKey(chain, content);
  const auto found = by_key_.find(key);
  if (found != by_key_.end()) {
    if (!Continues(nodes_[found->second], chain, content)) return std::nullopt;
    Reference(found->second);
    chain.nodes.emplace_back(found->second);
    return nodes_[found->second].page;
  }
  BATON_CHECK(!unused_.empty());  // a page is cached once, and there are as many nodes as pages
  const uint32_t id = unused_.back();
  unused_.pop_back();
  Node& node = nodes_[id];
  node.key = key;
  node.tokens.assign(content.begin(), content.end());
  node.page = page;
  node.generated = generated;
  node.used = true;
  node.references = 1;
  if (chain.nodes.empty()) {
    node.salt = chain.salt;
  } else {
    node.parent = chain.nodes.back().value();
    ++nodes_[node.parent].children;
  }
  by_key_.emplace(key, id);
  chain.nodes.emplace_back(id);
  ++cached_;
  return page;
}

void PrefixCache::Reference(uint32_t id) {
  if (nodes_[id].references++ == 0) Unlink(id);
}

void PrefixCache::Release(PrefixChain& chain) {
  for (; !chain.nodes.empty(); chain.nodes.pop_back()) {
    const uint32_t id = chain.nodes.back().value();
    BATON_CHECK_GT(nodes_[id].references, 0);
    if (--nodes_[id].references == 0) LinkNewest(id);
  }
}

std::vector<PageId> PrefixCache::Evict(int32_t count) {
  BATON_CHECK(count >= 0 && count <= evictable_);
  std::vector<PageId> pages;
  pages.reserve(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    const uint32_t id = oldest_;
    Unlink(id);
    Node& node = nodes_[id];
    BATON_CHECK(node.references == 0 && node.children == 0);
    if (node.parent != kNone) --nodes_[node.parent].children;
    by_key_.erase(node.key);
    pages.push_back(node.page);
    node = Node();
    unused_.push_back(id);
  }
  cached_ -= count;
  evictions_ += static_cast<uint64_t>(count);
  return pages;
}

// --- the order of last use ----------------------------------------------------------------

void PrefixCache::LinkNewest(uint32_t id) {
  nodes_[id].older = newest_;
  nodes_[id].newer = kNone;
  (newest_ == kNone ? oldest_ : nodes_[newest_].newer) = id;
  newest_ = id;
  ++evictable_;
}

void PrefixCache::Unlink(uint32_t id) {
  Node& node = nodes_[id];
  (node.older == kNone ? oldest_ : nodes_[node.older].newer) = node.newer;
  (node.newer == kNone ? newest_ : nodes_[node.newer].older) = node.older;
  node.older = node.newer = kNone;
  --evictable_;
}

// --- integrity ----------------------------------------------------------------------------

std::vector<PageId> PrefixCache::Pages() const {
  std::vector<PageId> pages;
  for (const Node& node : nodes_) {
    if (node.used) pages.push_back(node.page);
  }
  return pages;
}

void PrefixCache::CheckInvariants(std::span<const PrefixChain* const> chains) const {
  std::vector<int32_t> references(nodes_.size(), 0);
  for (const PrefixChain* chain : chains) {
    uint32_t parent = kNone;
    for (const PrefixNodeId id : chain->nodes) {
      BATON_CHECK(nodes_[id.value()].used && nodes_[id.value()].parent == parent);
      ++references[id.value()];
      parent = id.value();
    }
  }
  std::vector<int32_t> children(nodes_.size(), 0);
  int32_t cached = 0;
  int32_t evictable = 0;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    BATON_CHECK_EQ(node.references, references[i]);
    if (!node.used) continue;
    ++cached;
    evictable += node.references == 0 ? 1 : 0;
    BATON_CHECK_EQ(node.tokens.size(), static_cast<size_t>(page_tokens_));
    BATON_CHECK_EQ(by_key_.at(node.key), i);
    if (node.parent == kNone) continue;
    BATON_CHECK(nodes_[node.parent].used && node.salt.empty());
    BATON_CHECK_GE(nodes_[node.parent].references, node.references);
    ++children[node.parent];
  }
  for (size_t i = 0; i < nodes_.size(); ++i) BATON_CHECK_EQ(nodes_[i].children, children[i]);
  BATON_CHECK_EQ(cached_, cached);
  BATON_CHECK_EQ(evictable_, evictable);
  BATON_CHECK_EQ(by_key_.size(), static_cast<size_t>(cached));
  BATON_CHECK_EQ(unused_.size() + static_cast<size_t>(cached), nodes_.size());
  // Along the order of last use every parent comes after its children.
  std::vector<bool> seen(nodes_.size(), false);
  int32_t linked = 0;
  for (uint32_t id = oldest_; id != kNone; id = nodes_[id].newer) {
    BATON_CHECK(nodes_[id].used && nodes_[id].references == 0 && ++linked <= evictable);
    const uint32_t parent = nodes_[id].parent;
    BATON_CHECK(parent == kNone || !seen[parent]);
    seen[id] = true;
  }
  BATON_CHECK_EQ(linked, evictable);
}

}  // namespace baton::scheduler
