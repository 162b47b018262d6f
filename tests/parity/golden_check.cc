#include "tests/parity/golden_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/model/golden.h"
#include "tests/model/model_harness.h"

namespace baton::model {
namespace {

double StandardDeviation(const LogitRow& row) {
  double sum = 0.0;
  double squares = 0.0;
  for (const float value : row) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const double n = static_cast<double>(row.size());
  return std::sqrt(std::max(0.0, squares / n - sum / n * (sum / n)));
}

// Infinite when either row holds NaN.
double LargestDifference(const LogitRow& a, const LogitRow& b) {
  double largest = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (std::isnan(difference)) return INFINITY;
    largest = std::max(largest, difference);
  }
  return largest;
}

TokenId ArgMax(const LogitRow& row) {
  return static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace

void CheckGolden(std::shared_ptr<const LoadedModel> model, const std::string& golden_path,
                 const GoldenSetup& setup) {
  RunnerOptions options;
  options.device = {.backend = setup.backend, .threads = 1, .max_isa = setup.isa};
  options.kv_format = setup.kv_format;
  options.activations = setup.activations;
  options.total_pages = 8;
  ModelHarness harness(std::move(model), options);

  double worst = 0.0;
  int rows_checked = 0;
  int outliers = 0;
  for (const GoldenCase& golden : ReadGolden(golden_path)) {
    SCOPED_TRACE("prompt length " + std::to_string(golden.prompt.size()));
    TestSequence sequence;
    sequence.tokens = golden.prompt;
    sequence.tokens.insert(sequence.tokens.end(), golden.greedy.begin(), golden.greedy.end() - 1);
    const int32_t length = static_cast<int32_t>(sequence.tokens.size());
    sequence.pages = TestPages(length, options.page_tokens);
    const int32_t prompt = static_cast<int32_t>(golden.prompt.size());
    const std::vector<LogitRow> rows = harness.RunSequence(sequence, prompt, /*chunk=*/64);

    for (size_t i = 0; i < golden.rows.size(); ++i) {
      const LogitRow& expected = golden.logits[i];
      const double difference =
          LargestDifference(rows[golden.rows[i]], expected) / StandardDeviation(expected);
      ++rows_checked;
      if (difference > setup.tolerance) {
        ++outliers;
        std::printf("prompt length %zu, row %d: difference %.6f\n", golden.prompt.size(),
                    golden.rows[i], difference);
      } else {
        worst = std::max(worst, difference);
      }
    }
    // The oracle's tokens were fed, so every row stands for itself: one difference is one, not an
    // avalanche.
    if (!setup.greedy) continue;
    std::vector<TokenId> greedy;
    for (int32_t r = prompt - 1; r < length; ++r) greedy.push_back(ArgMax(rows[r]));
    EXPECT_EQ(greedy, golden.greedy);
  }
  EXPECT_LE(outliers, setup.outlier_share * rows_checked);
  std::printf("%s: worst difference %.6f of %.6f allowed, %d of %d rows beyond\n", setup.name,
              worst, setup.tolerance, outliers, rows_checked);
}

}  // namespace baton::model
