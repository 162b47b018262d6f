#include <gtest/gtest.h>

#include <vector>

#include "transport/collectives.h"

namespace baton::transport {
namespace {

constexpr Duration kLimit = Duration::Millis(1);

std::vector<std::byte> Bytes(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (const int value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

TEST(SoloCollectives, IsAGroupOfOne) {
  const auto solo = MakeSoloCollectives();
  EXPECT_EQ(solo->world_size(), 1);
  EXPECT_EQ(solo->rank(), 0);
  EXPECT_TRUE(solo->Barrier(kLimit).ok());

  // A NaN's payload bits survive a sum of one term.
  std::vector<std::byte> data = Bytes({1, 2, 0xc1, 0x7f, 5, 6, 7, 8});
  const std::vector<std::byte> original = data;
  EXPECT_TRUE(solo->AllReduceSum(data, ReduceType::kF32, kLimit).ok());
  EXPECT_TRUE(solo->AllReduceSum(data, ReduceType::kBF16, kLimit).ok());
  EXPECT_TRUE(solo->Broadcast(data, 0, kLimit).ok());
  EXPECT_EQ(data, original);
  EXPECT_TRUE(solo->AllReduceSum({}, ReduceType::kF32, kLimit).ok());

  std::vector<std::byte> all(8);
  EXPECT_TRUE(solo->AllGather(data, all, kLimit).ok());
  EXPECT_EQ(all, original);
  std::vector<std::byte> exchanged(8);
  const size_t sizes[] = {8};
  EXPECT_TRUE(solo->AllToAllV(data, sizes, exchanged, sizes, kLimit).ok());
  EXPECT_EQ(exchanged, original);
}

TEST(SoloCollectives, RefusesSizesThatDisagree) {
  const auto solo = MakeSoloCollectives();
  std::vector<std::byte> three(3), four(4);
  const size_t sizes3[] = {3}, sizes4[] = {4}, two[] = {2, 2};
  const auto refused = [](const absl::Status& status) {
    return status.code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused(solo->AllReduceSum(three, ReduceType::kBF16, kLimit)));
  EXPECT_TRUE(refused(solo->AllGather(three, four, kLimit)));
  EXPECT_TRUE(refused(solo->Broadcast(three, 1, kLimit)));
  EXPECT_TRUE(refused(solo->AllToAllV(three, sizes3, four, sizes4, kLimit)));
  EXPECT_TRUE(refused(solo->AllToAllV(three, sizes4, four, sizes4, kLimit)));
  EXPECT_TRUE(refused(solo->AllToAllV(four, two, four, two, kLimit)));
}

}  // namespace
}  // namespace baton::transport
