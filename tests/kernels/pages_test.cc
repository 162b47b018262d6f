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

// Lengths around every border of the checksum's forms (240 bytes, stripes of 64, blocks of 1024,
// many blocks), entries of a multiple of 8 bytes and of 4, and a message anywhere in memory.
TEST_P(PagesTest, EveryLengthIsPackedAndUnpackedAsByTheReference) {
  for (const int rope : {2, 4}) {  // entries of 68 and 72 bytes
    const int64_t entry = KvEntryBytes(KvFormat::kBF16, kLora, rope);
    Owned data(DType::kU8, {40, 16 * entry});
    for (int64_t i = 0; i < data.elements(); ++i) {
      data.as<uint8_t>()[i] = static_cast<uint8_t>(rng_.Next());
    }
    const auto pages_of = [&](const Owned& owned) {
      KvPages pages = PagesOf(owned, KvFormat::kBF16);
      pages.rope = rope;
      return pages;
    };
    for (const int entries : {1, 3, 4, 14, 15, 16, 28, 29, 128, 143, 257, 600}) {
      std::vector<PageRange> ranges, target;
      for (int left = entries, i = 0; left > 0; ++i) {
        const int first = i % 5 == 3 ? 7 : 0;
        const int count = std::min(left, i % 4 == 1 ? 11 - first : 16 - first);
        ranges.push_back({i * 7 % 40, first, count});
        if (i < 40) target.push_back({39 - i, 16 - count, count});
        left -= count;
      }
      const bool fits = target.size() == ranges.size();  // else pages would be written twice
      const int64_t bytes = entries * entry;
      for (const int64_t shift : {0, 1}) {
        const uint64_t seed = rng_.Next();
        Owned expected(DType::kU8, {bytes}), message(DType::kU8, {bytes + shift});
        uint64_t expected_checksum = 0, checksum = 0;
        PagesPackArgs pack{.pages = pages_of(data), .ranges = ranges, .seed = seed};
        pack.message = expected.view();
        pack.checksum = &expected_checksum;
        EXPECT_OK(PagesPack(*reference_, pack));
        pack.message = message.view().Slice(0, shift, bytes + shift);
        pack.checksum = &checksum;
        EXPECT_OK(PagesPack(*device_, pack));
        EXPECT_EQ(checksum, expected_checksum) << entries << " entries of " << entry;
        EXPECT_EQ(std::memcmp(message.as<uint8_t>() + shift, expected.as<uint8_t>(),
                              static_cast<size_t>(bytes)),
                  0);
        if (!fits) continue;
        Owned back(data.dtype(), data.shape()), untouched = back, reference_back = back;
        PagesUnpackArgs unpack{.pages = pages_of(back), .ranges = target};
        unpack.message = pack.message;
        unpack.seed = seed;
        unpack.checksum = checksum ^ 1;
        EXPECT_EQ(PagesUnpack(*device_, unpack).code(), absl::StatusCode::kDataLoss);
        EXPECT_EQ(back.bytes(), untouched.bytes());
        unpack.checksum = checksum;
        EXPECT_OK(PagesUnpack(*device_, unpack));
        unpack.pages = pages_of(reference_back);
        EXPECT_OK(PagesUnpack(*reference_, unpack));
        EXPECT_EQ(back.bytes(), reference_back.bytes());
      }
    }
  }
}

// A transport's buffers may be plain memory of the host, whatever the device.
TEST_P(PagesTest, MessagesMayLieInTheHostsMemory) {
  const int64_t entry = KvEntryBytes(KvFormat::kBF16, kLora, kRope);
  Owned data(DType::kU8, {2, 16 * entry});
  for (int64_t i = 0; i < 32 * entry; ++i) data.as<uint8_t>()[i] = static_cast<uint8_t>(i * 5 + 1);
  for (const int32_t tokens : {1, 11}) {  // less than the checksum's kernels take, and more
    const std::vector<PageRange> ranges = {{1, 2, tokens}};
    const int64_t bytes = tokens * entry;
    Owned near(DType::kU8, {bytes});
    std::vector<uint8_t> far(static_cast<size_t>(bytes));
    const TensorView message = TensorView::Contiguous(far.data(), DType::kU8, {bytes});
    uint64_t expected = 0, checksum = 0;
    PagesPackArgs pack{
        .pages = PagesOf(data, KvFormat::kBF16), .ranges = ranges, .message = near.view()};
    pack.checksum = &expected;
    EXPECT_OK(PagesPack(*device_, pack));
    pack.message = message;
    pack.checksum = &checksum;
    EXPECT_OK(PagesPack(*device_, pack));
    EXPECT_EQ(checksum, expected);
    EXPECT_EQ(std::memcmp(far.data(), near.as<uint8_t>(), far.size()), 0);

    Owned back(DType::kU8, {2, 16 * entry});
    PagesUnpackArgs unpack{
        .pages = PagesOf(back, KvFormat::kBF16), .ranges = ranges, .message = message};
    unpack.checksum = checksum;
    EXPECT_OK(PagesUnpack(*device_, unpack));
    // The message may be used for something else at once.
    std::fill(far.begin(), far.end(), uint8_t{0xEE});
    EXPECT_EQ(std::memcmp(back.as<uint8_t>() + 18 * entry, near.as<uint8_t>(), far.size()), 0);
  }
}

BATON_INSTANTIATE_KERNEL_TEST(PagesTest);

}  // namespace
}  // namespace baton::kernels
