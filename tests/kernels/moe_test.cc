// Routing, grouping by expert and the weighted sum.

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct GateCase {
  int64_t experts;
  int n_group, topk_group, top_k;
  GateScore score;
  GroupScore group_score;
  bool bias, normalize;
  float scale;
};

const GateCase kGateCases[] = {
    {64, 1, 1, 6, GateScore::kSoftmax, GroupScore::kMax, false, false, 1.0f},       // V2-Lite
    {160, 8, 3, 6, GateScore::kSoftmax, GroupScore::kMax, false, false, 16.0f},     // V2
    {256, 8, 4, 8, GateScore::kSigmoid, GroupScore::kSumOfTop2, true, true, 2.5f},  // V3
    {13, 1, 1, 13, GateScore::kSigmoid, GroupScore::kSumOfTop2, true, true, 1.0f},
    {1, 1, 1, 1, GateScore::kSigmoid, GroupScore::kMax, false, true, 1.0f},
};

class MoeTest : public KernelTest {
 protected:
  struct Routed {
    Owned experts, weights, physical;
  };
  static Routed Gate(Device& device, const GateCase& c, const Owned& x, const Owned& gate,
                     const Owned& bias) {
    const int64_t rows = x.shape()[0];
    Routed out{Owned(DType::kI32, {rows, c.top_k}), Owned(DType::kF32, {rows, c.top_k}), {}};
    MoeGateArgs args{.x = x.view(), .gate = gate.view()};
    if (c.bias) args.bias = bias.view();
    args.score = c.score;
    args.group_score = c.group_score;
    args.n_group = c.n_group;
    args.topk_group = c.topk_group;
    args.top_k = c.top_k;
    args.normalize = c.normalize;
    args.scale = c.scale;
    args.experts = out.experts.view();
    args.weights = out.weights.view();
    EXPECT_OK(MoeGate(device, args));
    return out;
  }
};

TEST_P(MoeTest, GateMatchesReference) {
  for (const GateCase& c : kGateCases) {
    for (DType act : {DType::kF32, DType::kBF16}) {
      for (DType weight : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(std::to_string(c.experts) + DTypeName(act) + DTypeName(weight));
        const Owned x = Random(rng_, act, {9, 136});
        const Owned gate = Random(rng_, weight, {c.experts, 136}, 0.2f);
        const Owned bias = Random(rng_, DType::kF32, {c.experts}, 0.1f);
        const Routed expected = Gate(*reference_, c, x, gate, bias);
        const Routed actual = Gate(*device_, c, x, gate, bias);
        EXPECT_EQ(expected.experts.bytes(), actual.experts.bytes());
        EXPECT_TRUE(Near(expected.weights, actual.weights, 8 * SumEpsilon(136)));
      }
    }
  }
}

// By hand: four experts in two groups, x picks the logits.
TEST_P(MoeTest, GateByHand) {
  Owned gate(DType::kF32, {4, 1}), x(DType::kF32, {1, 1}), bias(DType::kF32, {4});
  x.set(0, 1.0f);
  const float logits[] = {2.0f, -3.0f, 1.0f, 1.0f};
  for (int e = 0; e < 4; ++e) gate.set(e, logits[e]);
  const auto sigmoid = [](double z) { return static_cast<float>(1.0 / (1.0 + std::exp(-z))); };
  GateCase c{4, 2, 1, 2, GateScore::kSigmoid, GroupScore::kSumOfTop2, false, true, 2.0f};
  // Sums of the two best: 0.88 + 0.05 against 0.73 + 0.73. The tie inside group 1 goes to the lower
  // id.
  Routed routed = Gate(*device_, c, x, gate, bias);
  EXPECT_EQ(routed.experts.as<int32_t>()[0], 2);
  EXPECT_EQ(routed.experts.as<int32_t>()[1], 3);
  EXPECT_NEAR(routed.weights.at(0), 1.0f, 1e-6);
  // By the best alone group 0 wins.
  c.group_score = GroupScore::kMax;
  routed = Gate(*device_, c, x, gate, bias);
  EXPECT_EQ(routed.experts.as<int32_t>()[0], 0);
  EXPECT_EQ(routed.experts.as<int32_t>()[1], 1);
  EXPECT_NEAR(routed.weights.at(0), 2 * sigmoid(2) / (sigmoid(2) + sigmoid(-3)), 1e-6);
  // The bias chooses but does not weigh; negative biased scores still beat the dropped group.
  c.bias = true;
  for (int e = 0; e < 4; ++e) bias.set(e, e < 2 ? -9.0f : -1.0f);
  bias.set(3, -0.9f);
  c.normalize = false;
  routed = Gate(*device_, c, x, gate, bias);
  EXPECT_EQ(routed.experts.as<int32_t>()[0], 3);
  EXPECT_EQ(routed.experts.as<int32_t>()[1], 2);
  EXPECT_NEAR(routed.weights.at(0), 2 * sigmoid(1), 1e-6);
}

TEST_P(MoeTest, GateChoosesReplicasByTheRowsOwnHash) {
  const int64_t rows = 5;
  const Owned x = Random(rng_, DType::kBF16, {rows, 64}),
              gate = Random(rng_, DType::kBF16, {3, 64});
  const Owned replicas = Ints({0, 3, 4, 1, -1, -1, 2, 5, -1}, {3, 3}), count = Ints({3, 1, 2});
  const Owned hash = Ints({0, 1, -1, 7, 7});
  Owned experts(DType::kI32, {rows, 3}), weights(DType::kF32, {rows, 3}),
      physical(DType::kI32, {rows, 3});
  MoeGateArgs args{.x = x.view(), .gate = gate.view()};
  args.top_k = 3;
  args.experts = experts.view();
  args.weights = weights.view();
  args.replicas = replicas.view();
  args.replica_count = count.view();
  args.row_hash = hash.view();
  args.physical = physical.view();
  EXPECT_OK(MoeGate(*device_, args));
  for (int64_t i = 0; i < rows * 3; ++i) {
    const int32_t expert = experts.as<int32_t>()[i];
    const uint32_t row_hash = hash.as<uint32_t>()[i / 3];
    const uint32_t pick = row_hash % count.as<uint32_t>()[expert];
    EXPECT_EQ(physical.as<int32_t>()[i], replicas.as<int32_t>()[expert * 3 + pick]);
  }
}

TEST_P(MoeTest, GateIsRowInvariant) {
  const GateCase& c = kGateCases[2];
  const Owned x = Random(rng_, DType::kBF16, {33, 200}),
              gate = Random(rng_, DType::kF32, {256, 200}, 0.1f);
  const Owned bias = Random(rng_, DType::kF32, {256}, 0.1f);
  const Routed all = Gate(*device_, c, x, gate, bias);
  const auto single = MakeDevice(GetParam(), 1);
  for (int64_t r = 0; r < 33; ++r) {
    const Routed one = Gate(*single, c, Rows(x, r, r + 1), gate, bias);
    EXPECT_EQ(one.experts.bytes(), RowBytes(all.experts, r));
    EXPECT_EQ(one.weights.bytes(), RowBytes(all.weights, r));
  }
}

TEST_P(MoeTest, PermuteGroupsByExpertAndSkipsForeignOnes) {
  const Owned experts = Ints({4, 2, 7, 4, 3, 2}, {3, 2});
  for (Device* device : {device_.get(), reference_.get()}) {
    Owned offsets(DType::kI32, {4}), row_tokens(DType::kI32, {6}), rows(DType::kI32, {3, 2});
    MoePermuteArgs args{.experts = experts.view(), .first_expert = 2};
    args.offsets = offsets.view();  // experts 2, 3 and 4 are here
    args.row_tokens = row_tokens.view();
    args.rows = rows.view();
    EXPECT_OK(MoePermute(*device, args));
    EXPECT_EQ(offsets.bytes(), Ints({0, 2, 3, 5}).bytes());
    EXPECT_EQ(row_tokens.bytes(), Ints({0, 2, 2, 0, 1, -1}).bytes());
    EXPECT_EQ(rows.bytes(), Ints({3, 0, -1, 4, 2, 1}).bytes());
  }
}

// What a broken message may ask for never leaves the memory that was set aside.
TEST_P(MoeTest, PermuteLeavesOutWhatDoesNotFit) {
  const Owned experts = Ints({4, 2, 7, 4, 3, 2}, {3, 2});
  for (Device* device : {device_.get(), reference_.get()}) {
    Owned offsets(DType::kI32, {4}), row_tokens(DType::kI32, {4}), rows(DType::kI32, {3, 2});
    EXPECT_OK(
        MoePermute(*device, {experts.view(), 2, offsets.view(), row_tokens.view(), rows.view()}));
    EXPECT_EQ(offsets.bytes(), Ints({0, 2, 3, 4}).bytes());
    EXPECT_EQ(row_tokens.bytes(), Ints({0, 2, 2, 0}).bytes());
    EXPECT_EQ(rows.bytes(), Ints({3, 0, -1, -1, 2, 1}).bytes());
  }
}

TEST_P(MoeTest, PermuteMatchesReference) {
  for (const int64_t tokens : {1, 7, 33}) {
    std::vector<int32_t> chosen;
    for (int64_t i = 0; i < tokens * 4; ++i) chosen.push_back(static_cast<int32_t>(rng_.Below(20)));
    const Owned experts = Ints(chosen, {tokens, 4});
    std::vector<Owned> results[2];
    for (const bool oracle : {false, true}) {
      Owned offsets(DType::kI32, {10}), row_tokens(DType::kI32, {tokens * 4});
      Owned rows(DType::kI32, {tokens, 4});
      EXPECT_OK(MoePermute(oracle ? *reference_ : *device_,
                           {experts.view(), 6, offsets.view(), row_tokens.view(), rows.view()}));
      results[oracle] = {offsets, row_tokens, rows};
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(results[0][i].bytes(), results[1][i].bytes());
  }
}

TEST_P(MoeTest, PermuteOfNothing) {
  const Owned experts(DType::kI32, {0, 2});
  for (Device* device : {device_.get(), reference_.get()}) {
    Owned offsets = Ints({9, 9, 9}), row_tokens(DType::kI32, {0}), rows(DType::kI32, {0, 2});
    EXPECT_OK(
        MoePermute(*device, {experts.view(), 0, offsets.view(), row_tokens.view(), rows.view()}));
    EXPECT_EQ(offsets.bytes(), Ints({0, 0, 0}).bytes());
  }
}

TEST_P(MoeTest, CombineMatchesReferenceAndIgnoresPlacement) {
  for (DType y_type : {DType::kF32, DType::kBF16}) {
    for (DType shared_type : {DType::kF32, DType::kBF16}) {
      for (bool accumulate : {false, true}) {
        const int64_t rows = 6, hidden = 83, k = 3;
        const Owned y = Random(rng_, y_type, {rows * k, hidden});
        const Owned shared = Random(rng_, shared_type, {rows, hidden});
        const Owned weights = Random(rng_, DType::kF32, {rows, k});
        std::vector<int32_t> row_ids, expert_ids;
        for (int32_t i = 0; i < rows * k; ++i) {
          row_ids.push_back(i % 7 == 3 ? -1 : static_cast<int32_t>(rows * k) - 1 - i);
          expert_ids.push_back((i * 5) % 11);
        }
        const Owned ids = Ints(row_ids, {rows, k}), experts = Ints(expert_ids, {rows, k});
        Owned expected = Random(rng_, DType::kF32, {rows, hidden}), actual = expected;
        MoeCombineArgs args{.y = y.view(),
                            .rows = ids.view(),
                            .experts = experts.view(),
                            .weights = weights.view(),
                            .shared = shared.view(),
                            .accumulate = accumulate};
        args.out = expected.view();
        EXPECT_OK(MoeCombine(*reference_, args));
        args.out = actual.view();
        const Owned before = actual;
        EXPECT_OK(MoeCombine(*device_, args));
        EXPECT_TRUE(Near(expected, actual, SumEpsilon(k)));

        // Choices listed in another order, as another batch or placement would: the same bits.
        Owned ids2 = ids, experts2 = experts, weights2 = weights, again = before;
        for (int64_t t = 0; t < rows; ++t) {
          for (int64_t c = 0; c < k; ++c) {
            ids2.as<int32_t>()[t * k + c] = ids.as<int32_t>()[t * k + (c + 1) % k];
            experts2.as<int32_t>()[t * k + c] = experts.as<int32_t>()[t * k + (c + 1) % k];
            weights2.as<float>()[t * k + c] = weights.as<float>()[t * k + (c + 1) % k];
          }
        }
        args.rows = ids2.view();
        args.experts = experts2.view();
        args.weights = weights2.view();
        args.out = again.view();
        EXPECT_OK(MoeCombine(*device_, args));
        EXPECT_EQ(again.bytes(), actual.bytes());
      }
    }
  }
}

BATON_INSTANTIATE_KERNEL_TEST(MoeTest);

}  // namespace
}  // namespace baton::kernels
