// Rows to the ranks of their experts, and outputs home: every place in every message, with blocks
// as long as needed and with blocks of a fixed length.

#include <algorithm>
#include <cstring>

#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

struct Capacities {
  int rows = 0;
  int pairs = 0;
};

// A plan and the tensors that it owns.
struct Plan {
  Plan(const Owned& chosen, int64_t ranks, int spr, Capacities c)
      : physical(chosen),
        counts(DType::kI32, {ranks, 2}),
        records(DType::kI32, chosen.shape()),
        home_rows(DType::kI32, chosen.shape()),
        slots_per_rank(spr),
        capacities(c) {}
  DispatchPlanArgs args() const {
    return {.physical = physical.view(),
            .slots_per_rank = slots_per_rank,
            .row_capacity = capacities.rows,
            .pair_capacity = capacities.pairs,
            .counts = counts.view(),
            .records = records.view(),
            .home_rows = home_rows.view(),
            .blocks = blocks.view(),
            .most_pairs = most_pairs.view()};
  }
  int32_t Count(int64_t rank, int what) const { return counts.as<int32_t>()[2 * rank + what]; }

  Owned physical, counts, records, home_rows, blocks, most_pairs = Ints({6});
  int slots_per_rank;
  Capacities capacities;
};

class DispatchTest : public KernelTest {
 protected:
  // Distinct slots for each row, as a gate chooses them; `favour` of the ranks get most.
  Owned Choose(int64_t rows, int64_t choices, int64_t slots, int64_t favoured) {
    std::vector<int32_t> chosen;
    for (int64_t t = 0; t < rows; ++t) {
      std::vector<int32_t> row;
      while (static_cast<int64_t>(row.size()) < choices) {
        const int64_t among = rng_.Chance(0.7) ? std::max(favoured, choices) : slots;
        const int32_t slot = static_cast<int32_t>(rng_.Below(static_cast<uint64_t>(among)));
        if (std::find(row.begin(), row.end(), slot) == row.end()) row.push_back(slot);
      }
      chosen.insert(chosen.end(), row.begin(), row.end());
    }
    return Ints(chosen, {rows, choices});
  }
  // Every pair's output stands where the plan said, and only what does not fit is missing.
  static void ExpectHome(const Plan& plan, const TestBytes& home, size_t from) {
    const int64_t choices = plan.physical.shape()[1];
    int64_t left_out = 0, beyond = 0;
    for (int64_t pair = 0; pair < plan.physical.elements(); ++pair) {
      const int32_t row = plan.home_rows.as<int32_t>()[pair];
      if (row < 0) {
        ++left_out;
        continue;
      }
      float value = 0;
      std::memcpy(&value, home.data() + 4 * row, sizeof value);
      EXPECT_EQ(value, static_cast<float>(1000 * static_cast<int64_t>(from) + pair / choices) +
                           0.01f * static_cast<float>(plan.physical.as<int32_t>()[pair]));
    }
    for (int64_t r = 0; r < plan.counts.shape()[0] && plan.capacities.rows > 0; ++r) {
      beyond += std::max(plan.Count(r, 1) - plan.capacities.pairs, 0);
    }
    EXPECT_EQ(left_out, beyond);
  }
};

TEST_P(DispatchTest, PlanByHand) {
  // Two ranks of three slots; row 1 wants rank 1 alone.
  const Owned chosen = Ints({1, 4, 0, 5, 3, 4, 2, 1, 5}, {3, 3});
  for (Device* device : {device_.get(), reference_.get()}) {
    Plan packed(chosen, 2, 3, {});
    EXPECT_OK(DispatchPlan(*device, packed.args()));
    EXPECT_EQ(packed.counts.bytes(), Ints({2, 4, 3, 5}).bytes());
    EXPECT_EQ(packed.records.bytes(), Ints({0, 2, -1, 3, -1, -1, 1, -1, 4}).bytes());
    EXPECT_EQ(packed.home_rows.bytes(), Ints({0, 4, 1, 5, 6, 7, 2, 3, 8}).bytes());
    Plan fixed(chosen, 2, 3, {.rows = 4, .pairs = 4});
    EXPECT_OK(DispatchPlan(*device, fixed.args()));
    EXPECT_EQ(fixed.counts.bytes(), Ints({2, 4, 3, 5}).bytes());
    EXPECT_EQ(fixed.records.bytes(), Ints({0, 4, -1, 5, -1, -1, 1, -1, 6}).bytes());
    EXPECT_EQ(fixed.home_rows.bytes(), Ints({0, 4, 1, 5, 6, 7, 2, 3, -1}).bytes());
  }
}

TEST_P(DispatchTest, PlanMatchesReference) {
  for (const int64_t rows : {0, 1, 7, 150}) {
    for (const int64_t ranks : {1, 2, 5}) {
      for (const Capacities capacities : {Capacities{}, Capacities{160, 250}, Capacities{150, 5}}) {
        SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(ranks) + " ranks, " +
                     std::to_string(capacities.pairs));
        Plan expected(Choose(rows, 4, ranks * 6, 3), ranks, 6, capacities);
        Plan actual = expected;
        EXPECT_OK(DispatchPlan(*reference_, expected.args()));
        EXPECT_OK(DispatchPlan(*device_, actual.args()));
        EXPECT_EQ(expected.counts.bytes(), actual.counts.bytes());
        EXPECT_EQ(expected.records.bytes(), actual.records.bytes());
        EXPECT_EQ(expected.home_rows.bytes(), actual.home_rows.bytes());
        EXPECT_EQ(expected.most_pairs.bytes(), actual.most_pairs.bytes());
      }
    }
  }
}

// Blocks of ranks that are there, in another order; nothing goes to the one that is not.
TEST_P(DispatchTest, RanksWithoutABlockGetNothing) {
  const RecordLayout layout{.hidden = 4, .choices = 3, .dtype = DType::kF32};
  const Owned x = Random(rng_, DType::kF32, {20, 4});
  Plan expected(Choose(20, 3, 15, 15), 3, 5, {20, 9});
  expected.blocks = Ints({1, -1, 0});
  Plan actual = expected;
  EXPECT_OK(DispatchPlan(*reference_, expected.args()));
  EXPECT_OK(DispatchPlan(*device_, actual.args()));
  EXPECT_EQ(expected.records.bytes(), actual.records.bytes());
  EXPECT_EQ(expected.home_rows.bytes(), actual.home_rows.bytes());
  EXPECT_GT(expected.Count(1, 1), 0);
  for (int64_t pair = 0; pair < 60; ++pair) {
    const int32_t record = actual.records.as<int32_t>()[pair];
    const int32_t home = actual.home_rows.as<int32_t>()[pair];
    EXPECT_TRUE(record < 40 && home < 18);
    if (actual.physical.as<int32_t>()[pair] / 5 == 1) {
      EXPECT_EQ(record, -1);
      EXPECT_EQ(home, -1);
    }
  }
  Owned messages[2] = {Owned(DType::kU8, {40, layout.bytes()}),
                       Owned(DType::kU8, {40, layout.bytes()})};
  for (const bool oracle : {false, true}) {
    EXPECT_OK(DispatchPack(oracle ? *reference_ : *device_, {.layout = layout,
                                                             .x = x.view(),
                                                             .scales = {},
                                                             .plan = actual.args(),
                                                             .out = messages[oracle].view()}));
  }
  EXPECT_EQ(messages[0].bytes(), messages[1].bytes());
}

// Packs `x` on `device`, which has to give the reference's bytes.
Owned PackOn(Device& device, const RecordLayout& layout, const Owned& x, const Owned& scales,
             const Plan& plan, int64_t records) {
  Owned message(DType::kU8, {records, layout.bytes()});
  EXPECT_OK(DispatchPack(device, {.layout = layout,
                                  .x = x.view(),
                                  .scales = scales.view(),
                                  .plan = plan.args(),
                                  .out = message.view()}));
  return message;
}

TEST_P(DispatchTest, PackAndUnpackMatchReference) {
  const int64_t rows = 9, ranks = 3;
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    for (const int64_t hidden : {256, 83, 130}) {
      for (const Capacities capacities : {Capacities{}, Capacities{11, 14}}) {
        SCOPED_TRACE(std::string(DTypeName(dtype)) + " " + std::to_string(hidden));
        const RecordLayout layout{.hidden = hidden, .choices = 4, .dtype = dtype};
        const Owned x = Random(rng_, dtype, {rows, hidden});
        Owned scales;
        if (layout.scales() > 0) scales = Random(rng_, DType::kF32, {rows, layout.scales()});
        Plan plan(Choose(rows, 4, ranks * 5, 6), ranks, 5, capacities);
        EXPECT_OK(DispatchPlan(*reference_, plan.args()));
        int64_t records = ranks * capacities.rows;
        for (int64_t r = 0; r < ranks && capacities.rows == 0; ++r) records += plan.Count(r, 0);
        const Owned message = PackOn(*reference_, layout, x, scales, plan, records);
        EXPECT_EQ(PackOn(*device_, layout, x, scales, plan, records).bytes(), message.bytes());
        for (const DType act : {DType::kBF16, DType::kF32}) {
          std::vector<Owned> results[2];
          for (const bool oracle : {false, true}) {
            Owned slots(DType::kI32, {records, 4}), out;
            if (layout.scales() > 0) out = Owned(act, {records, hidden});
            EXPECT_OK(DispatchUnpack(oracle ? *reference_ : *device_, {.layout = layout,
                                                                       .records = message.view(),
                                                                       .slots_per_rank = 5,
                                                                       .x = out.view(),
                                                                       .slots = slots.view()}));
            results[oracle] = {slots, out};
          }
          EXPECT_EQ(results[0][0].bytes(), results[1][0].bytes());
          EXPECT_EQ(results[0][1].bytes(), results[1][1].bytes());
        }
      }
    }
  }
}

// What rank `to` of `ranks` sends home for the records that it got: F32 [places, 1]. Its "experts"
// add their numbers to a row's first value, so that outputs tell where they come from.
Owned RunExperts(Device& device, const RecordLayout& layout, const Owned& records, int64_t to,
                 int64_t ranks, int spr, Capacities capacities) {
  const int64_t rows = records.shape()[0], choices = layout.choices;
  Owned slots(DType::kI32, {rows, choices}), offsets(DType::kI32, {spr + 1});
  Owned row_tokens(DType::kI32, {rows * choices}), pair_rows(DType::kI32, {rows, choices});
  EXPECT_OK(DispatchUnpack(device, {.layout = layout,
                                    .records = records.view(),
                                    .slots_per_rank = spr,
                                    .x = {},
                                    .slots = slots.view()}));
  EXPECT_OK(MoePermute(device, {.experts = slots.view(),
                                .offsets = offsets.view(),
                                .row_tokens = row_tokens.view(),
                                .rows = pair_rows.view()}));
  const int64_t pairs = offsets.as<int32_t>()[spr];
  Owned outputs(DType::kF32, {std::max<int64_t>(pairs, 1), 1});
  for (int64_t e = 0; e < spr; ++e) {
    for (int32_t i = offsets.as<int32_t>()[e]; i < offsets.as<int32_t>()[e + 1]; ++i) {
      const float* const row = records.view().row<const float>(row_tokens.as<int32_t>()[i]);
      outputs.set(i, row[0] + 0.01f * static_cast<float>(to * spr + e));
    }
  }
  const int64_t places = capacities.rows > 0 ? ranks * capacities.pairs : pairs;
  Owned index(DType::kI32, {places}), returned(DType::kF32, {places, 1});
  EXPECT_OK(ReturnPlan(device, {.pair_rows = pair_rows.view(),
                                .row_capacity = capacities.rows,
                                .pair_capacity = capacities.pairs,
                                .index = index.view()}));
  EXPECT_OK(CopyRows(device, {.x = outputs.view(), .index = index.view(), .out = returned.view()}));
  return returned;
}

// All ranks of a group in one place: every output has to come back to the row and choice that
// wanted it, whatever the blocks.
TEST_P(DispatchTest, OutputsComeHome) {
  const int64_t ranks = 3, choices = 3, hidden = 16;
  const int spr = 4;
  const RecordLayout layout{.hidden = hidden, .choices = choices, .dtype = DType::kF32};
  for (const Capacities capacities : {Capacities{}, Capacities{20, 60}, Capacities{17, 11}}) {
    SCOPED_TRACE(capacities.pairs);
    const bool packed = capacities.rows == 0;
    std::vector<Plan> plans;
    std::vector<Owned> messages;
    for (int64_t from = 0; from < ranks; ++from) {
      const int64_t rows = 5 + 6 * from;
      Owned x(DType::kF32, {rows, hidden});  // a row's rank and number
      for (int64_t i = 0; i < x.elements(); ++i) {
        x.set(i, static_cast<float>(1000 * from + i / hidden));
      }
      plans.emplace_back(Choose(rows, choices, ranks * spr, 4), ranks, spr, capacities);
      EXPECT_OK(DispatchPlan(*device_, plans.back().args()));
      const int64_t records = packed ? ranks * rows : ranks * capacities.rows;
      messages.push_back(PackOn(*device_, layout, x, {}, plans.back(), records));
    }
    // Block `to` of each rank's message to rank `to`, and its answer's blocks home.
    std::vector<TestBytes> home(ranks);
    std::vector<int64_t> sent_before(ranks, 0);
    for (int64_t to = 0; to < ranks; ++to) {
      TestBytes received;
      for (size_t from = 0; from < ranks; ++from) {
        const int64_t rows = packed ? plans[from].Count(to, 0) : capacities.rows;
        const auto begin = messages[from].bytes().begin() + sent_before[from] * layout.bytes();
        received.insert(received.end(), begin, begin + rows * layout.bytes());
        sent_before[from] += rows;
      }
      Owned records(DType::kU8,
                    {static_cast<int64_t>(received.size()) / layout.bytes(), layout.bytes()});
      std::copy(received.begin(), received.end(), records.as<uint8_t>());
      const Owned returned = RunExperts(*device_, layout, records, to, ranks, spr, capacities);
      const uint8_t* at = returned.as<uint8_t>();
      for (size_t from = 0; from < ranks; ++from) {
        const int64_t here = packed ? plans[from].Count(to, 1) : capacities.pairs;
        home[from].insert(home[from].end(), at, at + 4 * here);
        at += 4 * here;
      }
    }
    for (size_t from = 0; from < ranks; ++from) ExpectHome(plans[from], home[from], from);
  }
}

TEST_P(DispatchTest, CopyRowsOfAnyWidthWithAndWithoutIndex) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kU8}) {
    for (const int64_t width : {1, 24, 83}) {
      Owned wide(dtype, {6, width + 5});
      for (int64_t i = 0; i < wide.elements(); ++i) wide.set(i, static_cast<float>(i % 190));
      const TensorView x = wide.view().Slice(1, 3, 3 + width);
      const Owned index = Ints({5, -1, 0, 5});
      Owned picked(dtype, {4, width}), all(dtype, {6, width});
      EXPECT_OK(CopyRows(*device_, {.x = x, .index = index.view(), .out = picked.view()}));
      EXPECT_OK(CopyRows(*device_, {.x = x, .out = all.view()}));
      for (int64_t i = 0; i < width; ++i) {
        EXPECT_EQ(picked.at(i), wide.at(5 * (width + 5) + 3 + i));
        EXPECT_EQ(picked.at(width + i), 0.0f);
        EXPECT_EQ(picked.at(3 * width + i), picked.at(i));
        EXPECT_EQ(all.at(2 * width + i), wide.at(2 * (width + 5) + 3 + i));
      }
    }
  }
}

TEST_P(DispatchTest, CountsAddUp) {
  Owned choices = Ints({1, 0, 5, 0});
  EXPECT_OK(MoeCount(*device_, {Ints({0, 2, 2, 0, 2, 1}, {3, 2}).view(), choices.view()}));
  EXPECT_EQ(choices.bytes(), Ints({3, 1, 8, 0}).bytes());
  // The middle row is of padding.
  Owned slots(DType::kI64, {3});
  for (int64_t t = 0; t < 3; ++t) slots.as<int64_t>()[t] = t == 1 ? -1 : 7 * t;
  EXPECT_OK(MoeCount(*device_, {.experts = Ints({0, 2, 2, 0, 2, 1}, {3, 2}).view(),
                                .choices = choices.view(),
                                .slots = slots.view()}));
  EXPECT_EQ(choices.bytes(), Ints({4, 2, 10, 0}).bytes());
}

TEST_P(DispatchTest, RefusesWhatDoesNotFit) {
  const Owned chosen = Ints({0, 1, 2, 3}, {2, 2});
  const auto message = [&](const DispatchPlanArgs& args) {
    return std::string(DispatchPlan(*device_, args).message());
  };
  EXPECT_EQ(message(Plan(chosen, 2, 2, {.rows = 1, .pairs = 4}).args()),
            "DispatchPlan: rows is 2, expected 0..1");
  EXPECT_EQ(message(Plan(chosen, 2, 2, {.rows = 2}).args()),
            "DispatchPlan: pair_capacity is 0, expected 1..2147483647");
  EXPECT_EQ(message(Plan(chosen, 2, 2, {.pairs = 2}).args()),
            "DispatchPlan: pair_capacity is 2, expected 0..0");
  EXPECT_EQ(message(Plan(chosen, 1025, 2, {}).args()),
            "DispatchPlan: ranks is 1025, expected 1..1024");
  if (GetParam().backend != BackendKind::kCuda) {
    EXPECT_NE(message(Plan(chosen, 1, 2, {}).args()), "");
  }
  const RecordLayout layout{.hidden = 8, .choices = 2, .dtype = DType::kI32};
  const Owned records(DType::kU8, {1, 48}), slots(DType::kI32, {1, 2});
  EXPECT_EQ(DispatchUnpack(*device_, {layout, records.view(), 2, {}, slots.view()}).message(),
            "DispatchUnpack: a record's values are I32, expected F32, BF16 or F8E4M3");
}

BATON_INSTANTIATE_KERNEL_TEST(DispatchTest);

}  // namespace
}  // namespace baton::kernels
