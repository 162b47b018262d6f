#ifndef BATON_BASE_STRONG_ID_H_
#define BATON_BASE_STRONG_ID_H_

// An integer that only compares and hashes with its own kind, so that a page id cannot be passed
// for a rank.
//   struct PageIdTag;  using PageId = StrongId<PageIdTag, uint32_t>;

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace baton {

template <typename Tag, typename Int>
class StrongId {
 public:
  using Value = Int;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Int value) : value_(value) {}
  constexpr Int value() const { return value_; }
  friend constexpr auto operator<=>(StrongId a, StrongId b) = default;
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }
  template <typename H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  Int value_ = 0;
};

}  // namespace baton

template <typename Tag, typename Int>
struct std::hash<baton::StrongId<Tag, Int>> {
  size_t operator()(baton::StrongId<Tag, Int> id) const { return std::hash<Int>()(id.value()); }
};

#endif  // BATON_BASE_STRONG_ID_H_
