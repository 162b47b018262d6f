#include "model/pair_capacity.h"

#include "gtest/gtest.h"

namespace baton::model {
namespace {

TEST(PairCapacityTest, RowsComeInFewSizes) {
  EXPECT_EQ(PairCapacity::RowsFor(1), 1);
  EXPECT_EQ(PairCapacity::RowsFor(3), 4);
  EXPECT_EQ(PairCapacity::RowsFor(16), 16);
  EXPECT_EQ(PairCapacity::RowsFor(17), 32);
  EXPECT_EQ(PairCapacity::RowsFor(100), 112);
}

TEST(PairCapacityTest, RoomIsTwiceTheMeanAndNeverMoreThanAll) {
  EXPECT_EQ(PairCapacity(8, 8).PairsFor(64), 2 * 64 + 8);
  EXPECT_EQ(PairCapacity(8, 32).PairsFor(64), 2 * 16 + 8);
  EXPECT_EQ(PairCapacity(8, 2).PairsFor(64), 64 * 8);  // two ranks: whatever comes fits
  EXPECT_EQ(PairCapacity(8, 64).PairsFor(1), 8);
}

TEST(PairCapacityTest, GrowsUntilThePassFitsAndShrinksWhenItIsCalm) {
  PairCapacity capacity(8, 32);
  EXPECT_TRUE(capacity.Fits(64, 40));
  EXPECT_FALSE(capacity.Fits(64, 41));
  EXPECT_EQ(capacity.PairsFor(64), 4 * 16 + 8);
  EXPECT_FALSE(capacity.Fits(64, 64 * 8));
  EXPECT_EQ(capacity.PairsFor(64), 64 * 8);
  EXPECT_TRUE(capacity.Fits(64, 64 * 8));
  // It takes many passes that needed half of it or less, in a row.
  for (int i = 0; i < 255; ++i) EXPECT_TRUE(capacity.Fits(64, 20));
  EXPECT_TRUE(capacity.Fits(64, 64 * 8));
  for (int i = 0; i < 255; ++i) EXPECT_TRUE(capacity.Fits(64, 20));
  EXPECT_EQ(capacity.PairsFor(64), 64 * 8);
  int passes = 0;
  while (capacity.PairsFor(64) > 40 && passes < 10000) {
    EXPECT_TRUE(capacity.Fits(64, 20));
    ++passes;
  }
  EXPECT_EQ(capacity.PairsFor(64), 40);
  EXPECT_LT(passes, 256 * 6);
}

}  // namespace
}  // namespace baton::model
