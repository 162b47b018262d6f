#ifndef BATON_TESTS_MODEL_GOLDEN_H_
#define BATON_TESTS_MODEL_GOLDEN_H_

// What the oracle computed for one prompt (tools/make_golden/README.md describes the file).

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace baton::model {

struct GoldenCase {
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;             // the continuation
  std::vector<int32_t> rows;               // positions whose logits are kept
  std::vector<std::vector<float>> logits;  // of each of `rows`
};

// All cases of a golden.safetensors, by prompt length. Dies when the file is not one.
std::vector<GoldenCase> ReadGolden(const std::string& path);

}  // namespace baton::model

#endif  // BATON_TESTS_MODEL_GOLDEN_H_
