#include "base/suggest.h"

#include <algorithm>
#include <vector>

namespace baton {

// Optimal string alignment: the classic table, with the row before last for swaps.
int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::string ClosestMatch(std::string_view word, std::span<const std::string> candidates) {
  int best_distance = std::max<int>(2, static_cast<int>(word.size()) / 3) + 1;
  std::string best;
  for (const std::string& candidate : candidates) {
    const size_t dot = candidate.rfind('.');
    const bool last_part = dot != std::string::npos && candidate.substr(dot + 1) == word;
    const int distance = last_part ? 1 : EditDistance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace baton
