#ifndef BATON_SCHEDULER_PREFIX_KEY_H_
#define BATON_SCHEDULER_PREFIX_KEY_H_

// Names for prefixes: the key of a page is a 128-bit hash of all tokens up to its end and of the
// salt, chained page by page, the same in every process. A key is a hint where to look and never
// proof: PrefixCache compares tokens, and what a router believes by key alone costs time at most.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"

namespace baton::scheduler {

struct PrefixKey {
  uint64_t high = 0;
  uint64_t low = 0;
  friend constexpr auto operator<=>(const PrefixKey&, const PrefixKey&) = default;
};

struct PrefixKeyHash {
  size_t operator()(const PrefixKey& key) const { return static_cast<size_t>(key.low); }
};

// The key in front of a prompt's first page. Requests of different salts share nothing.
PrefixKey RootKey(std::string_view salt);

// The key of the page that holds `tokens` behind the pages that `parent` names.
PrefixKey ChildKey(const PrefixKey& parent, std::span<const TokenId> tokens);

// Of every full page of `tokens`, in order.
std::vector<PrefixKey> PrefixKeys(std::span<const TokenId> tokens, int32_t page_tokens,
                                  std::string_view salt);

// Pages of a prompt that may be taken from a cache: the full ones, and never all, since the last
// token has to be computed for the first token to be sampled.
constexpr int32_t ReusablePages(int64_t prompt_tokens, int32_t page_tokens) {
  return static_cast<int32_t>((prompt_tokens - 1) / page_tokens);
}

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_PREFIX_KEY_H_
