#ifndef BATON_MODEL_TOKENIZER_UNICODE_DELTA_H_
#define BATON_MODEL_TOKENIZER_UNICODE_DELTA_H_

// The code points that Unicode 15 and 16 assigned and PCRE2 10.42 (Unicode 14) does not know. Split
// patterns must class them as the `tokenizers` package does, so tokenizer_regex adds these ranges
// to the properties it translates. Known limit: U+1171E moved from Mn to Mc, which only a pattern
// with \p{Mn} or \p{Mc} could tell.

#include <cstdint>
#include <span>

namespace baton::model {

struct UnicodeDelta {
  const char* property;  // a two-letter general category, "Alphabetic", or a script
  uint32_t first;        // code points, both inclusive
  uint32_t last;
};

std::span<const UnicodeDelta> UnicodeDeltas();

}  // namespace baton::model

#endif  // BATON_MODEL_TOKENIZER_UNICODE_DELTA_H_
