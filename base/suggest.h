#ifndef BATON_BASE_SUGGEST_H_
#define BATON_BASE_SUGGEST_H_

// "Did you mean": the known name that a mistyped one was probably meant to be. Pure.

#include <span>
#include <string>
#include <string_view>

namespace baton {

// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`.
int EditDistance(std::string_view a, std::string_view b);

// The candidate with the fewest edits (the first of equals), or "" when all need more than a third
// of the word's length, at least two. A candidate whose last dotted part is the word counts as one
// edit away, so that "max_queue" finds "router.max_queue".
std::string ClosestMatch(std::string_view word, std::span<const std::string> candidates);

}  // namespace baton

#endif  // BATON_BASE_SUGGEST_H_
