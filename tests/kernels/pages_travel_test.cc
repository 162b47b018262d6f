// Entries of a layer from one worker's pages to another's.

#include "tests/kernels/latent_cache.h"

namespace baton::kernels {
namespace {

class PagesTravelTest : public KernelTest {};

TEST_P(PagesTravelTest, MessagesArriveAndCorruptionIsRefused) {
  const Shape& shape = kShapes[2];
  const Cache from = MakeCache(rng_, shape, {1}, {100});
  Cache to = MakeCache(rng_, shape, {1}, {100});
  const std::vector<PageRange> source = {{5, 0, 32}, {2, 4, 9}, {3, 31, 1}, {3, 0, 0}};
  const std::vector<PageRange> target = {{1, 0, 32}, {4, 4, 9}, {2, 31, 1}, {3, 0, 0}};
  const int64_t entry = KvEntryBytes(shape.format, shape.kv_lora, shape.rope);
  Owned message(DType::kU8, {42 * entry});
  uint64_t checksum = 0;
  PagesPackArgs pack{.pages = from.pages(), .ranges = source, .message = message.view(), .seed = 7};
  pack.checksum = &checksum;
  EXPECT_OK(PagesPack(*device_, pack));
  PagesUnpackArgs unpack{
      .pages = to.pages(), .ranges = target, .message = message.view(), .seed = 7};
  unpack.checksum = checksum;
  const TestBytes before = to.data.bytes();
  message.as<uint8_t>()[41 * entry] ^= 1;
  EXPECT_EQ(PagesUnpack(*device_, unpack).code(), absl::StatusCode::kDataLoss);
  message.as<uint8_t>()[41 * entry] ^= 1;
  unpack.seed = 8;  // a message of another header
  EXPECT_EQ(PagesUnpack(*device_, unpack).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(to.data.bytes(), before);
  unpack.seed = 7;
  EXPECT_OK(PagesUnpack(*device_, unpack));
  for (size_t i = 0; i < source.size(); ++i) {
    for (int32_t j = 0; j < source[i].count; ++j) {
      EXPECT_EQ(std::memcmp(EntryAt(from.pages(), source[i].page, source[i].first + j),
                            EntryAt(to.pages(), target[i].page, target[i].first + j),
                            static_cast<size_t>(entry)),
                0);
    }
  }
  // Tokens beside the ranges stay.
  const int64_t beside = EntryAt(to.pages(), 4, 13) - to.data.as<uint8_t>();
  EXPECT_EQ(std::memcmp(to.data.bytes().data() + beside, before.data() + beside,
                        static_cast<size_t>(entry)),
            0);
}

TEST(KvFormatTest, EntrySizes) {
  EXPECT_EQ(KvEntryBytes(KvFormat::kBF16, 512, 64), 1152);
  EXPECT_EQ(KvEntryBytes(KvFormat::kFP8, 512, 64), 656);
  EXPECT_EQ(KvEntryBytes(KvFormat::kF32, 128, 32), 640);
}

BATON_INSTANTIATE_KERNEL_TEST(PagesTravelTest);

}  // namespace
}  // namespace baton::kernels
