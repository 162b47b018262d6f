// Samplers: exact agreement with the reference, the meaning of each parameter, and the generator
// behind the draw.

#include <cfloat>
#include <map>

#include "kernels/sampling.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

// Known answers of the generator's authors (Random123, kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  using A4 = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (A4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (A4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (A4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, DrawsComeFromTheFirstTwoWords) {
  EXPECT_EQ(DrawBits(0, 0), 0xe169c58d6627e8d5ull >> 11);
  EXPECT_NE(DrawBits(0, 1), DrawBits(1, 0));
}

// The exponential is the library's up to the last places of double, which rounding to integers
// hides nearly always.
TEST(DrawWeightTest, IsTheExponential) {
  EXPECT_EQ(ScaledExp(0.0), uint64_t{1} << kWeightBits);
  EXPECT_EQ(ScaledExp(-29.8), 1u);  // 0.5 lies at -29.805
  EXPECT_EQ(ScaledExp(-29.81), 0u);
  EXPECT_EQ(ScaledExp(-INFINITY), 0u);
  Rng rng(3);
  uint64_t before = ScaledExp(0.0);
  for (double x = 0.0; x > -30.5; x -= 0.002 * rng.Uniform()) {
    const uint64_t weight = ScaledExp(x);
    EXPECT_NEAR(static_cast<double>(weight), std::ldexp(std::exp(x), kWeightBits), 0.51) << x;
    EXPECT_LE(weight, before) << x;
    before = weight;
  }
}

TEST(DrawWeightTest, BordersOfTheFilters) {
  EXPECT_EQ(LeastWeight(0.0f), 1u);
  EXPECT_EQ(LeastWeight(1e-30f), 1u);
  EXPECT_EQ(LeastWeight(0.5f), uint64_t{1} << (kWeightBits - 1));
  EXPECT_EQ(LeastWeight(1.0f), uint64_t{1} << kWeightBits);
  EXPECT_EQ(WantedMass(1e-40f, 7), 1u);
  EXPECT_EQ(WantedMass(0.5f, 7), 4u);
  EXPECT_EQ(WantedMass(0.5f, 8), 4u);
  EXPECT_EQ(WantedMass(1.0f, (uint64_t{1} << 62) + 1), uint64_t{1} << 62);
  EXPECT_EQ(DrawTarget((uint64_t{1} << 53) - 1, 5), 4u);
  EXPECT_EQ(DrawTarget(0, 5), 0u);
}

class SampleTest : public KernelTest {
 protected:
  static std::vector<SampleResult> Run(Device& device, const Owned& logits,
                                       const std::vector<SampleParams>& params) {
    std::vector<SampleResult> results(params.size());
    SampleArgs args{.logits = logits.view(), .params = params};
    args.results = absl::MakeSpan(results);
    EXPECT_OK(Sample(device, args));
    return results;
  }
  SampleResult One(const std::vector<float>& logits, const SampleParams& params) {
    Owned row(DType::kF32, {1, static_cast<int64_t>(logits.size())});
    std::copy(logits.begin(), logits.end(), row.as<float>());
    return Run(*device_, row, {params})[0];
  }
  // How often each token is drawn over many positions.
  std::map<int32_t, int> Histogram(const std::vector<float>& logits, SampleParams params,
                                   int draws) {
    std::map<int32_t, int> counts;
    for (int i = 0; i < draws; ++i) {
      params.position = i;
      ++counts[One(logits, params).token];
    }
    return counts;
  }
};

TEST_P(SampleTest, SameTokensAsReference) {
  CaseShare share(GetParam(), 3);
  for (int64_t vocabulary : {1, 5, 100, 1000}) {
    if (!share.Mine()) continue;
    Owned logits = Random(rng_, DType::kF32, {64, vocabulary}, 3.0f);
    std::vector<std::vector<TokenCount>> seen(64);
    std::vector<SampleParams> params(64);
    for (size_t i = 0; i < params.size(); ++i) {
      SampleParams& p = params[i];
      p.temperature = i % 5 == 0 ? 0.0f : static_cast<float>(0.1 + 1.5 * rng_.Uniform());
      p.top_k = i % 3 == 0 ? 0 : static_cast<int32_t>(1 + rng_.Below(40));
      p.top_p = i % 2 == 0 ? 1.0f : static_cast<float>(0.05 + 0.95 * rng_.Uniform());
      p.min_p = i % 4 == 0 ? 0.2f : 0.0f;
      p.seed = rng_.Next();
      p.position = static_cast<int64_t>(rng_.Below(1 << 20));
      p.top_logprobs = static_cast<int32_t>(i % 21);
      if (i % 7 == 0) {
        p.repetition_penalty = 1.3f;
        p.presence_penalty = 0.5f;
        p.frequency_penalty = 0.2f;
        for (int32_t t = 0; t < std::min<int64_t>(vocabulary, 9); ++t)
          seen[i].push_back({t, t % 3});
        p.seen = seen[i];
      }
    }
    // Ties and masked tokens.
    for (int64_t i = 0; i < logits.elements(); i += 3) logits.set(i, std::round(logits.at(i)));
    for (int64_t i = 1; i < logits.elements(); i += 11) logits.set(i, -INFINITY);
    const std::vector<SampleResult> expected = Run(*reference_, logits, params);
    const std::vector<SampleResult> actual = Run(*device_, logits, params);
    for (size_t i = 0; i < params.size(); ++i) {
      EXPECT_EQ(expected[i].token, actual[i].token) << "row " << i << " of " << vocabulary;
      EXPECT_NEAR(expected[i].logprob, actual[i].logprob, 2e-5);
      ASSERT_EQ(expected[i].top_count, actual[i].top_count);
      for (int32_t j = 0; j < expected[i].top_count; ++j) {
        EXPECT_EQ(expected[i].top[j].token, actual[i].top[j].token);
        EXPECT_NEAR(expected[i].top[j].logprob, actual[i].top[j].logprob, 2e-5);
      }
    }
  }
}

// Rows of a vocabulary that many threads share, where ties, masks and the ends of the number range
// decide: flat, all but a few tokens masked, the largest floats, zeros of both signs.
TEST_P(SampleTest, HardRowsOfALargeVocabularyAreTheReferences) {
  constexpr int64_t kVocabulary = 17001;
  Owned logits(DType::kF32, {5, kVocabulary});
  float* const values = logits.as<float>();
  for (int64_t i = 0; i < kVocabulary; ++i) {
    values[i] = 1.5f;
    values[kVocabulary + i] = i % 4000 == 123 ? static_cast<float>(i) * 1e-4f : -INFINITY;
    values[2 * kVocabulary + i] = i % 3 == 0 ? -FLT_MAX : i % 1000 == 7 ? FLT_MAX : 0.0f;
    values[3 * kVocabulary + i] = i % 2 == 0 ? -0.0f : 0.0f;
    values[4 * kVocabulary + i] = static_cast<float>(i % 97) * 0.01f;
  }
  const std::vector<TokenCount> seen = {{0, 1}, {7, 2}, {17000, 0}, {12123, 3}};
  CaseShare share(GetParam(), 5);
  for (const SampleParams& each : std::vector<SampleParams>{
           {},
           {.top_p = 0.5f},
           {.top_k = 700, .top_p = 0.3f, .top_logprobs = 20},
           {.temperature = 1e-3f, .top_k = 50, .min_p = 1.0f},
           {.temperature = 1e30f, .top_p = 1e-40f, .top_logprobs = 1},
           {.temperature = 0.0f, .repetition_penalty = 1.2f, .presence_penalty = 0.5f}}) {
    if (!share.Mine()) continue;
    std::vector<SampleParams> params(5, each);
    for (size_t i = 0; i < params.size(); ++i) {
      params[i].position = static_cast<int64_t>(i);
      if (each.repetition_penalty != 1.0f) params[i].seen = seen;
    }
    const std::vector<SampleResult> expected = Run(*reference_, logits, params);
    const std::vector<SampleResult> actual = Run(*device_, logits, params);
    for (size_t i = 0; i < params.size(); ++i) {
      EXPECT_EQ(expected[i].token, actual[i].token) << "row " << i << ", top_p " << each.top_p;
      ASSERT_EQ(expected[i].top_count, actual[i].top_count);
      for (int32_t j = 0; j < expected[i].top_count; ++j) {
        EXPECT_EQ(expected[i].top[j].token, actual[i].top[j].token) << "row " << i;
      }
    }
  }
}

TEST_P(SampleTest, GreedyTakesTheLowestIdOnTies) {
  EXPECT_EQ(One({1, 5, 5, 2}, {.temperature = 0.0f}).token, 1);
  const SampleResult result = One({0, 0, 0, 0}, {.temperature = 0.0f, .top_logprobs = 2});
  EXPECT_EQ(result.token, 0);
  EXPECT_NEAR(result.logprob, -std::log(4.0f), 1e-6);
  ASSERT_EQ(result.top_count, 2);
  EXPECT_EQ(result.top[1].token, 1);
}

TEST_P(SampleTest, RowsWithoutADistributionYieldNoToken) {
  EXPECT_EQ(One({1, NAN, 2}, {}).token, -1);
  EXPECT_EQ(One({1, INFINITY}, {.temperature = 0.0f}).token, -1);
  EXPECT_EQ(One({-INFINITY, -INFINITY}, {}).token, -1);
  EXPECT_EQ(One({-INFINITY, -4}, {}).token, 1);
}

// 4000 draws: standard deviation of a frequency is below 0.008, the bounds are five of them.
TEST_P(SampleTest, DrawsFollowTheDistribution) {
  if (!CaseShare(GetParam(), 9).Mine()) return;
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f)};
  std::map<int32_t, int> counts = Histogram(logits, {.seed = 99}, 4000);
  EXPECT_NEAR(counts[0] / 4000.0, 0.125, 0.04);
  EXPECT_NEAR(counts[1] / 4000.0, 0.25, 0.04);
  EXPECT_NEAR(counts[2] / 4000.0, 0.625, 0.04);
  counts = Histogram(logits, {.temperature = 0.5f, .seed = 99}, 4000);  // weights 1, 4, 25
  EXPECT_NEAR(counts[2] / 4000.0, 25.0 / 30.0, 0.04);
}

TEST_P(SampleTest, FiltersKeepWhatTheyPromise) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.3f)};
  const auto tokens = [&](SampleParams params) {
    std::vector<int32_t> kept;
    for (const auto& [token, count] : Histogram(logits, params, 400)) kept.push_back(token);
    return kept;
  };
  const std::pair<SampleParams, std::vector<int32_t>> cases[] = {
      {{}, {0, 1, 2, 3}},
      {{.top_k = 2}, {1, 3}},
      {{.top_p = 0.65f}, {1, 3}},
      {{.top_p = 0.75f}, {1, 2, 3}},
      {{.top_p = 1e-6f}, {1}},
      {{.min_p = 0.6f}, {1, 3}},
      {{.top_k = 3, .top_p = 0.7f}, {1, 3}},  // 0.7 of 0.9 is 0.63
  };
  CaseShare share(GetParam(), 7);
  for (const auto& [params, kept] : cases) {
    if (!share.Mine()) continue;
    EXPECT_EQ(tokens(params), kept)
        << "top_k " << params.top_k << ", top_p " << params.top_p << ", min_p " << params.min_p;
  }
}

TEST_P(SampleTest, PenaltiesPushSeenTokensDown) {
  const std::vector<TokenCount> prompt = {{0, 0}}, twice = {{0, 2}};
  SampleParams params{.temperature = 0.0f};
  params.seen = prompt;
  params.presence_penalty = 5.0f;
  EXPECT_EQ(One({2, 1}, params).token, 0);  // in the prompt only
  params.seen = twice;
  EXPECT_EQ(One({2, 1}, params).token, 1);
  params.presence_penalty = 0.0f;
  params.frequency_penalty = 0.4f;
  EXPECT_EQ(One({2, 1}, params).token, 0);
  params.frequency_penalty = 0.6f;
  EXPECT_EQ(One({2, 1}, params).token, 1);
  params.frequency_penalty = 0.0f;
  params.seen = prompt;
  params.repetition_penalty = 2.5f;
  EXPECT_EQ(One({2, 1}, params).token, 1);
  EXPECT_EQ(One({-1, -2}, params).token, 1);  // a negative logit is multiplied
  // The logprob is that of the model, without penalties.
  EXPECT_NEAR(One({2, 1}, params).logprob, -1.3132617f, 1e-5);
}

TEST_P(SampleTest, IsRowInvariant) {
  const Owned logits = Random(rng_, DType::kF32, {33, 501}, 2.0f);
  std::vector<SampleParams> params;
  for (int i = 0; i < 33; ++i) {
    params.push_back(
        {.top_k = i % 2 == 0 ? 0 : 50, .top_p = 0.9f, .seed = 5, .position = i, .top_logprobs = 3});
  }
  const std::vector<SampleResult> all = Run(*device_, logits, params);
  CaseShare share(GetParam(), 7);
  for (int64_t r = 0; r < 33; ++r) {
    if (!share.Mine()) continue;
    const SampleResult one = Run(*MakeDevice(GetParam(), 1), Rows(logits, r, r + 1),
                                 {params[static_cast<size_t>(r)]})[0];
    EXPECT_EQ(one.token, all[static_cast<size_t>(r)].token);
    EXPECT_EQ(one.logprob, all[static_cast<size_t>(r)].logprob);
  }
}

TEST_P(SampleTest, MaskForbidsTokens) {
  const Owned before = Random(rng_, DType::kF32, {2, 40});
  const Owned mask = Ints({-1, -1, 5, 1 << 7}, {2, 2});
  for (Device* device : {device_.get(), reference_.get()}) {
    Owned logits = before;
    EXPECT_OK(LogitsMask(*device, {logits.view(), mask.view()}));
    for (int64_t i = 0; i < 40; ++i) {
      EXPECT_EQ(logits.at(i), before.at(i));
      const bool allowed = i == 0 || i == 2 || i == 39;
      EXPECT_EQ(logits.at(40 + i), allowed ? before.at(40 + i) : -INFINITY);
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(SampleTest);

}  // namespace
}  // namespace baton::kernels
