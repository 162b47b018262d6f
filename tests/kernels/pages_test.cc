// The layout of a latent's entry, and hand-off messages, against literal bytes: both backends share
// the definition of the former.

#include "kernels/page_entry.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

using Bytes = TestBytes;

constexpr int kLora = 32, kRope = 2;

KvPages PagesOf(const Owned& data, KvFormat format) {
  return {
      .data = data.view(), .format = format, .page_tokens = 16, .kv_lora = kLora, .rope = kRope};
}

// The entry of a latent that begins with `first` and is zero from there on, rotary key (1, -2).
Bytes Written(KvFormat format, std::vector<float> first) {
  first.resize(kLora);
  const float rotary[] = {1.0f, -2.0f};
  const int64_t bytes = KvEntryBytes(format, kLora, kRope);
  Owned data(DType::kU8, {1, 16 * bytes});
  const KvPages pages = PagesOf(data, format);
  WriteEntry(pages, first.data(), rotary, EntryAtSlot(pages, 3));
  float latent_back[kLora], rotary_back[kRope];
  ReadEntry(pages, EntryAtSlot(pages, 3), latent_back, rotary_back);
  EXPECT_EQ(rotary_back[1], -2.0f);
  EXPECT_EQ(latent_back[0], first[0]);  // these tests begin with a value that every format holds
  const auto begin = data.bytes().begin() + 3 * bytes;
  return Bytes(begin, begin + bytes);
}

Bytes WithZeros(Bytes begin, size_t zeros, const Bytes& end) {
  begin.resize(begin.size() + zeros);
  begin.insert(begin.end(), end.begin(), end.end());
  return begin;
}

TEST(PageEntryTest, SizesOfTheRealShapes) {
  EXPECT_EQ(KvEntryBytes(KvFormat::kBF16, 512, 64), 1152);
  EXPECT_EQ(KvEntryBytes(KvFormat::kFP8, 512, 64), 656);
  EXPECT_EQ(KvEntryBytes(KvFormat::kF32, 512, 64), 2304);
}

TEST(PageEntryTest, F32) {
  EXPECT_EQ(Written(KvFormat::kF32, {1.5f}),
            WithZeros({0x00, 0x00, 0xC0, 0x3F}, 31 * 4,
                      {0x00, 0x00, 0x80, 0x3F, 0x00, 0x00, 0x00, 0xC0}));
}

TEST(PageEntryTest, Bf16RoundsToNearest) {
  EXPECT_EQ(Written(KvFormat::kBF16, {1.5f, 1.001f}),
            WithZeros({0xC0, 0x3F, 0x80, 0x3F}, 30 * 2, {0x80, 0x3F, 0x00, 0xC0}));
}

// 896 is 448 * 2: the scale is 2, 1 becomes 0.5 and -3 becomes -1.5.
TEST(PageEntryTest, Fp8HasCodesThenScalesThenRotary) {
  EXPECT_EQ(Written(KvFormat::kFP8, {896.0f, 1.0f, -3.0f}),
            WithZeros({0x7E, 0x30, 0xBC}, 29, {0x00, 0x00, 0x00, 0x40, 0x80, 0x3F, 0x00, 0xC0}));
}

class PagesTest : public KernelTest {};

TEST_P(PagesTest, PackedBytesAndChecksumByHand) {
  const int64_t entry = KvEntryBytes(KvFormat::kBF16, kLora, kRope);
  ASSERT_EQ(entry, 68);
  Owned data(DType::kU8, {2, 16 * entry});
  const auto byte = [](int64_t i) { return static_cast<uint8_t>(i * 7 + 3); };
  for (int64_t i = 0; i < 16 * entry; ++i) data.as<uint8_t>()[16 * entry + i] = byte(i);
  const std::vector<PageRange> ranges = {{1, 5, 2}, {0, 4, 0}, {1, 1, 1}};
  for (Device* device : {device_.get(), reference_.get()}) {
    Owned message(DType::kU8, {3 * entry});
    uint64_t checksum = 0;
    PagesPackArgs args{.pages = PagesOf(data, KvFormat::kBF16), .ranges = ranges};
    args.message = message.view();
    args.seed = 9;
    args.checksum = &checksum;
    EXPECT_OK(PagesPack(*device, args));
    for (int64_t i = 0; i < entry; ++i) {
      EXPECT_EQ(message.as<uint8_t>()[i], byte(5 * entry + i));
      EXPECT_EQ(message.as<uint8_t>()[entry + i], byte(6 * entry + i));
      EXPECT_EQ(message.as<uint8_t>()[2 * entry + i], byte(entry + i));
    }
    EXPECT_EQ(checksum, 0x962faeef624f45b8u);  // XXH3_64bits_withSeed(those 204 bytes, 9)

    Owned back(DType::kU8, {2, 16 * entry});
    const std::vector<PageRange> target = {{0, 14, 2}, {1, 0, 1}};
    PagesUnpackArgs unpack{.pages = PagesOf(back, KvFormat::kBF16), .ranges = target};
    unpack.message = message.view();
    unpack.seed = 9;
    unpack.checksum = checksum;
    EXPECT_OK(PagesUnpack(*device, unpack));
    EXPECT_EQ(std::memcmp(back.as<uint8_t>() + 14 * entry, message.as<uint8_t>(), 3 * entry), 0);
    EXPECT_EQ(back.as<uint8_t>()[17 * entry], 0);
    message.as<uint8_t>()[203] ^= 1;
    EXPECT_EQ(PagesUnpack(*device, unpack).code(), absl::StatusCode::kDataLoss);
  }
}

TEST_P(PagesTest, ChecksumOfNothingIsThatOfTheLibrary) {
  const Owned data(DType::kU8, {1, 16 * 68});
  for (Device* device : {device_.get(), reference_.get()}) {
    uint64_t checksum = 0;
    Owned message(DType::kU8, {0});
    PagesPackArgs args{.pages = PagesOf(data, KvFormat::kBF16), .message = message.view()};
    args.checksum = &checksum;
    EXPECT_OK(PagesPack(*device, args));
    EXPECT_EQ(checksum, 0x2d06800538d394c2u);  // XXH3 of no bytes
  }
}

BATON_INSTANTIATE_KERNEL_TEST(PagesTest);

}  // namespace
}  // namespace baton::kernels
