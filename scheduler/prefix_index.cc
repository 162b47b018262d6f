#include "scheduler/prefix_index.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace baton::scheduler {

int32_t PrefixIndex::Match(std::span<const PrefixKey> keys) const {
  const auto end = std::partition_point(
      keys.begin(), keys.end(), [this](const PrefixKey& key) { return places_.contains(key); });
  return static_cast<int32_t>(end - keys.begin());
}

void PrefixIndex::Add(std::span<const PrefixKey> keys) {
  for (size_t i = keys.size(); i > 0; --i) {
    const PrefixKey& key = keys[i - 1];
    const auto known = places_.find(key);
    if (known != places_.end()) {
      by_use_.splice(by_use_.end(), by_use_, known->second);
    } else {
      by_use_.push_back(key);
      places_.emplace(key, std::prev(by_use_.end()));
    }
  }
}

void PrefixIndex::ShrinkTo(int64_t pages) {
  while (static_cast<int64_t>(places_.size()) > std::max<int64_t>(pages, 0)) {
    places_.erase(by_use_.front());
    by_use_.pop_front();
  }
}

void PrefixIndex::CheckInvariants() const {
  BATON_CHECK_EQ(by_use_.size(), places_.size());
  for (auto it = by_use_.begin(); it != by_use_.end(); ++it) {
    BATON_CHECK(places_.at(*it) == it);
  }
}

}  // namespace baton::scheduler
