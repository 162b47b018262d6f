// What ops refuse, and how they say it; what CreateDevice refuses; scratch memory.

#include "gmock/gmock.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {
namespace {

using ::testing::HasSubstr;

void ExpectInvalid(const absl::Status& status, const std::string& part) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(part));
}

class ArgsTest : public ::testing::Test {
 protected:
  std::unique_ptr<Device> device_ = MakeDevice(BackendKind::kCpu);
  Rng rng_{1};
};

TEST_F(ArgsTest, DevicesThatDoNotExist) {
  const auto cuda = CreateDevice({.backend = BackendKind::kCuda});
  EXPECT_EQ(cuda.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(cuda.status().message()), HasSubstr("--preset cuda"));
  EXPECT_EQ(CreateDevice({.threads = -1}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateDevice({.threads = 5000}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ArgsTest, LevelIsTheLowerOfMachineAndOption) {
  EXPECT_EQ(MakeDevice(BackendKind::kCpu, 1, IsaLevel::kPortable)->isa(), IsaLevel::kPortable);
  EXPECT_EQ(device_->isa(), DetectIsa());
}

TEST_F(ArgsTest, MemoryIsAlignedAndCopies) {
  absl::StatusOr<DeviceBuffer> buffer = device_->Allocate(100);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
  const std::string text = "latent";
  std::string back(text.size(), ' ');
  EXPECT_OK(device_->CopyToDevice(buffer->data(), text.data(), text.size()));
  EXPECT_OK(device_->CopyToHost(back.data(), buffer->data(), text.size()));
  EXPECT_OK(device_->Synchronize());
  EXPECT_EQ(back, text);
  EXPECT_EQ(device_->Allocate(SIZE_MAX).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ArgsTest, Embed) {
  const Owned ids = Ints({3}), bad = Ints({4}), negative = Ints({-1}), table(DType::kBF16, {4, 8});
  const Owned out(DType::kF32, {1, 8}), narrow(DType::kF32, {1, 7});
  EXPECT_OK(Embed(*device_, {ids.view(), table.view(), out.view()}));
  ExpectInvalid(Embed(*device_, {bad.view(), table.view(), out.view()}),
                "ids holds 4 at index 0, expected 0..3");
  ExpectInvalid(Embed(*device_, {negative.view(), table.view(), out.view()}), "ids holds -1");
  ExpectInvalid(Embed(*device_, {ids.view(), table.view(), narrow.view()}),
                "out is F32[1, 7], expected F32[1, 8]");
  ExpectInvalid(Embed(*device_, {ids.view(), table.view(), {}}), "out is (absent)");
  ExpectInvalid(Embed(*device_, {table.view(), table.view(), out.view()}), "ids is BF16[4, 8]");
  const Owned none = Ints({});
  EXPECT_OK(Embed(*device_, {none.view(), table.view(), Owned(DType::kF32, {0, 8}).view()}));
}

TEST_F(ArgsTest, LayoutAndAlignment) {
  const Owned x(DType::kF32, {4, 16}), weight(DType::kF32, {16}), out(DType::kF32, {4, 16});
  RmsNormArgs args{.x = x.view(), .weight = weight.view(), .out = out.view()};
  EXPECT_OK(RmsNorm(*device_, args));
  std::swap(args.x.strides[0], args.x.strides[1]);
  ExpectInvalid(RmsNorm(*device_, args), "x has strides");
  args.x = x.view();
  args.x.data = static_cast<uint8_t*>(args.x.data) + 2;
  ExpectInvalid(RmsNorm(*device_, args), "not a multiple of 4 bytes");
  args.x.data = nullptr;
  ExpectInvalid(RmsNorm(*device_, args), "x has no data");
  args.x = x.view();
  args.eps = NAN;
  ExpectInvalid(RmsNorm(*device_, args), "eps is nan, expected 0..1");
}

TEST_F(ArgsTest, Linear) {
  const Owned x(DType::kBF16, {2, 200}), out(DType::kF32, {2, 130}), out16(DType::kBF16, {2, 130});
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 130, 200),
                    wide = RandomWeight(rng_, DType::kBF16, 130, 200);
  LinearArgs args{.x = x.view(), .w = w.view(), .out = out.view()};
  EXPECT_OK(Linear(*device_, args));
  args.w.scales = {};
  ExpectInvalid(Linear(*device_, args),
                "block scales of an F8E4M3 matrix is (absent), expected F32[2, 2]");
  args.w = w.view();
  args.w.block_k = 96;
  ExpectInvalid(Linear(*device_, args), "block_k is 96, expected a multiple of 64");
  args.w = wide.view();
  args.w.scales = w.scales.view();
  ExpectInvalid(Linear(*device_, args), "expected none");
  args.w = w.view();
  args.epilogue = Epilogue::kSiluMul;
  ExpectInvalid(Linear(*device_, args), "w2 is (absent)");
  args.w2 = wide.view();
  ExpectInvalid(Linear(*device_, args),
                "w2 is BF16[130, 200] in blocks of 128x128, expected F8E4M3");
  args.epilogue = Epilogue::kNone;
  ExpectInvalid(Linear(*device_, args), "w2 (without kSiluMul)");
  args.w2 = {};
  args.epilogue = Epilogue::kAdd;
  args.out = out16.view();
  ExpectInvalid(Linear(*device_, args), "out is BF16[2, 130], expected F32[2, 130]");
  const Owned f32(DType::kF32, {2, 200});
  args = {.x = f32.view(), .w = w.view(), .out = out16.view()};
  ExpectInvalid(Linear(*device_, args), "out is BF16[2, 130], expected F32 or F32");
}

TEST_F(ArgsTest, PagesAndBatches) {
  const Owned data(DType::kU8, {3, 16 * 160}), q(DType::kBF16, {2, 1, 24}),
      lat(DType::kBF16, {2, 1, 64});
  const Owned start = Ints({0, 2}), length = Ints({20}), table = Ints({2, 0}, {1, 2});
  MlaDecodeArgs args{.q_lat = lat.view(), .q = q.view(), .out = lat.view(), .softmax_scale = 0.1f};
  args.pages = {
      .data = data.view(), .format = KvFormat::kBF16, .page_tokens = 16, .kv_lora = 64, .rope = 16};
  args.batch = {start.view(), length.view(), table.view()};
  EXPECT_OK(MlaDecode(*device_, args));
  const auto with = [&](auto change) {
    MlaDecodeArgs bad = args;
    change(bad);
    return MlaDecode(*device_, bad);
  };
  ExpectInvalid(with([](auto& a) { a.pages.page_tokens = 8; }),
                "pages.page_tokens is 8, expected 16..256");
  ExpectInvalid(with([](auto& a) { a.pages.kv_lora = 72; }), "multiple of 32");
  ExpectInvalid(with([](auto& a) { a.pages.page_tokens = 17; }),
                "a page has 2560 bytes, expected at least 2720");
  ExpectInvalid(with([](auto& a) { a.softmax_scale = 0; }), "softmax_scale is 0");
  const Owned gap = Ints({1, 2}), few = Ints({0, 1});
  ExpectInvalid(with([&](auto& a) { a.batch.query_start = gap.view(); }),
                "query_start holds 1 at index 0");
  ExpectInvalid(with([&](auto& a) { a.batch.query_start = few.view(); }),
                "query_start ends at 1, expected 2");
  const Owned shorter = Ints({1}), longer = Ints({33}), foreign = Ints({2, 3}, {1, 2});
  ExpectInvalid(with([&](auto& a) { a.batch.context_len = shorter.view(); }),
                "context_len holds 1 for sequence 0");
  ExpectInvalid(with([&](auto& a) { a.batch.context_len = longer.view(); }),
                "needs 3 pages, the page table has 2");
  ExpectInvalid(with([&](auto& a) { a.batch.page_table = foreign.view(); }),
                "page_table holds 3 for page 1 of sequence 0");
  ExpectInvalid(with([](auto& a) { a.batch.context_tokens = 16; }),
                "context_tokens is 16, expected 0 or at least 20");

  uint64_t checksum = 0;
  const std::vector<PageRange> range = {{0, 10, 7}};
  PagesPackArgs pack{
      .pages = args.pages, .ranges = range, .message = data.view(), .checksum = &checksum};
  ExpectInvalid(PagesPack(*device_, pack), "ranges.count is 7, expected 0..6");
}

TEST_F(ArgsTest, Moe) {
  const Owned x(DType::kF32, {1, 8}), gate(DType::kF32, {6, 8}), ids(DType::kI32, {1, 2}),
      weights(DType::kF32, {1, 2});
  MoeGateArgs args{.x = x.view(), .gate = gate.view()};
  args.top_k = 2;
  args.experts = ids.view();
  args.weights = weights.view();
  EXPECT_OK(MoeGate(*device_, args));
  args.n_group = 4;
  ExpectInvalid(MoeGate(*device_, args), "n_group is 4, expected a divisor of the 6 experts");
  args.n_group = 6;
  ExpectInvalid(MoeGate(*device_, args), "top_k is 2, expected 1..1");
  args.topk_group = 2;
  ExpectInvalid(MoeGate(*device_, args), "needs groups of at least 2");
  const Owned y(DType::kF32, {2, 8}), bad = Ints({0, 2}, {1, 2}), out(DType::kF32, {1, 8});
  ExpectInvalid(MoeCombine(*device_, {.y = y.view(),
                                      .rows = bad.view(),
                                      .experts = ids.view(),
                                      .weights = weights.view(),
                                      .out = out.view()}),
                "rows holds 2 at index 1, expected -1..1");
  const Owned offsets = Ints({0, 2, 1});
  const OwnedWeight owned = RandomWeight(rng_, DType::kBF16, 4, 8);
  const std::vector<Weight> w = {owned.view(), owned.view()};
  const Owned out4(DType::kF32, {2, 4});
  GroupedLinearArgs grouped{.x = y.view(), .offsets = offsets.view()};
  grouped.w = w;
  grouped.out = out4.view();
  ExpectInvalid(GroupedLinear(*device_, grouped),
                "offsets holds 1 at index 2, expected an ascending sequence");
}

TEST_F(ArgsTest, Sample) {
  const Owned logits(DType::kF32, {1, 4});
  std::vector<SampleResult> results(1);
  const auto status = [&](const SampleParams& params) {
    SampleArgs args{.logits = logits.view(), .params = absl::MakeConstSpan(&params, 1)};
    args.results = absl::MakeSpan(results);
    return Sample(*device_, args);
  };
  EXPECT_OK(status({}));
  ExpectInvalid(status({.temperature = -1}), "temperature is -1");
  ExpectInvalid(status({.top_p = 0}), "top_p is 0");
  ExpectInvalid(status({.min_p = 1.5f}), "(row 0)");
  const std::vector<TokenCount> seen = {{4, 0}};
  SampleParams foreign;
  foreign.seen = seen;
  ExpectInvalid(status(foreign), "seen.token is 4, expected 0..3");
}

TEST(ScratchTest, GrowsThenStaysAndIsAligned) {
  Scratch scratch;
  for (int round = 0; round < 3; ++round) {
    scratch.Reset();
    float* a = scratch.Get<float>(100000);
    uint8_t* b = scratch.Get<uint8_t>(1);
    float* c = scratch.Get<float>(300000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 64, 0u);
    a[99999] = c[299999] = 1.0f;
    EXPECT_EQ(a[99999], 1.0f);
  }
  const size_t steady = scratch.capacity_bytes();
  scratch.Reset();
  scratch.Get<float>(400000);
  EXPECT_EQ(scratch.capacity_bytes(), steady);
}

}  // namespace
}  // namespace baton::kernels
