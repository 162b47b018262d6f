#include "scheduler/prefix_key.h"

namespace baton::scheduler {
namespace {

// Two lanes of SplitMix64 finishers, each a bijection of its state for a given input, with
// different constants added so that they do not fall into step.
constexpr uint64_t Mix(uint64_t state, uint64_t value, uint64_t increment) {
  uint64_t z = (state ^ value) + increment;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

constexpr void Add(uint64_t value, PrefixKey& key) {
  key.high = Mix(key.high, value, 0x9E3779B97F4A7C15ull);
  key.low = Mix(key.low, value, 0xD1B54A32D192ED03ull);
}

}  // namespace

PrefixKey RootKey(std::string_view salt) {
  PrefixKey key{0x6A09E667F3BCC908ull, 0xBB67AE8584CAA73Bull};
  Add(salt.size(), key);
  for (const char c : salt) Add(static_cast<unsigned char>(c), key);
  return key;
}

PrefixKey ChildKey(const PrefixKey& parent, std::span<const TokenId> tokens) {
  PrefixKey key = parent;
  for (const TokenId token : tokens) Add(static_cast<uint32_t>(token), key);
  return key;
}

std::vector<PrefixKey> PrefixKeys(std::span<const TokenId> tokens, int32_t page_tokens,
                                  std::string_view salt) {
  const auto page = static_cast<size_t>(page_tokens);
  std::vector<PrefixKey> keys;
  keys.reserve(tokens.size() / page);
  PrefixKey key = RootKey(salt);
  for (size_t begin = 0; begin + page <= tokens.size(); begin += page) {
    keys.push_back(key = ChildKey(key, tokens.subspan(begin, page)));
  }
  return keys;
}

}  // namespace baton::scheduler
