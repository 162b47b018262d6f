#ifndef BATON_TESTS_KERNELS_OP_CASES_H_
#define BATON_TESTS_KERNELS_OP_CASES_H_

// One call of each op on small, ragged inputs, for tests that compare whole outputs byte by byte.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/page_entry.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {

// What an op wrote, all outputs one after the other.
using Bytes = TestBytes;
inline void Append(const Owned& tensor, Bytes* bytes) {
  bytes->insert(bytes->end(), tensor.bytes().begin(), tensor.bytes().end());
}

// Seven rows of each op's inputs, of sizes that neither threads nor vectors divide.
class OpCases {
 public:
  OpCases() {
    latents_ = Owned(DType::kU8, {6, kPageTokens * KvEntryBytes(KvFormat::kFP8, kLora, kRope)});
    for (int64_t page = 0; page < 6; ++page) {
      for (int64_t i = 0; i < kPageTokens; ++i) {
        const Owned latent = Random(rng_, DType::kF32, {kLora});
        const Owned rotary = Random(rng_, DType::kF32, {kRope});
        const KvPages pages = Pages(latents_);
        WriteEntry(pages, latent.as<float>(), rotary.as<float>(), EntryAt(pages, page, i));
      }
    }
    AddRowOps();
    AddLinears();
    AddAttention();
    AddPages();
    AddMoe();
    AddDispatch();
    AddLogits();
  }
  // By the op's name.
  std::map<std::string, std::function<Bytes(Device&)>> cases;

 private:
  static constexpr int64_t kRows = 7, kHidden = 75, kHeads = 3, kNope = 24, kRope = 8, kV = 20;
  static constexpr int kLora = 96, kPageTokens = 16;

  static KvPages Pages(const Owned& data) {
    return {.data = data.view(),
            .format = KvFormat::kFP8,
            .page_tokens = kPageTokens,
            .kv_lora = kLora,
            .rope = kRope};
  }
  PagedBatch Batch() const { return {query_start_.view(), context_len_.view(), table_.view()}; }

  void AddRowOps() {
    const Owned x = Random(rng_, DType::kBF16, {kRows, kHidden});
    const Owned table = Random(rng_, DType::kBF16, {11, kHidden});
    const Owned ids = Ints({3, 10, 0, 3, 7, 1, 2});
    cases["Embed"] = [=](Device& device) {
      Owned out(DType::kF32, {kRows, kHidden});
      EXPECT_OK(Embed(device, {ids.view(), table.view(), out.view()}));
      return out.bytes();
    };
    cases["RmsNorm"] = [=](Device& device) {
      const Owned weight = Rows(table, 4, 5);
      Owned out(DType::kBF16, {kRows, kHidden});
      EXPECT_OK(RmsNorm(
          device, {.x = x.view(), .weight = weight.view().Reshape({kHidden}), .out = out.view()}));
      return out.bytes();
    };
    const Owned wide = Random(rng_, DType::kBF16, {kRows, 300}, 10.0f);
    cases["QuantizeFp8"] = [=](Device& device) {
      Owned out(DType::kF8E4M3, {kRows, 300}), scales(DType::kF32, {kRows, 3});
      EXPECT_OK(QuantizeFp8(device, {wide.view(), out.view(), scales.view()}));
      Bytes bytes = out.bytes();
      Append(scales, &bytes);
      return bytes;
    };
  }

  void AddLinears() {
    const Owned x = Random(rng_, DType::kBF16, {kRows, kHidden});
    const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 53, kHidden);
    const OwnedWeight w2 = RandomWeight(rng_, DType::kF8E4M3, 53, kHidden);
    cases["Linear"] = [=](Device& device) {
      Owned out(DType::kBF16, {kRows, 53});
      EXPECT_OK(Linear(device, {.x = x.view(),
                                .w = w.view(),
                                .w2 = w2.view(),
                                .out = out.view(),
                                .epilogue = Epilogue::kSiluMul}));
      return out.bytes();
    };
    const Owned offsets = Ints({0, 3, 3, 9}), index = Ints({6, 0, 3, 3, 1, 5, 2, 4, 0});
    cases["GroupedLinear"] = [=](Device& device) {
      const std::vector<Weight> weights = {w.view(), w.view(), w2.view()};
      Owned out(DType::kBF16, {9, 53});
      GroupedLinearArgs args{.x = x.view(), .row_index = index.view(), .offsets = offsets.view()};
      args.w = weights;
      args.out = out.view();
      EXPECT_OK(GroupedLinear(device, args));
      return out.bytes();
    };
  }

  void AddAttention() {
    const Owned q = Random(rng_, DType::kBF16, {kRows, kHeads, kNope + kRope});
    const Owned lat = Random(rng_, DType::kF32, {kRows, kHeads, kLora}, 0.3f);
    const OwnedWeight kv_b = RandomWeight(rng_, DType::kF8E4M3, kHeads * (kNope + kV), kLora);
    const Owned kv_a = Random(rng_, DType::kBF16, {kRows, kLora + kRope});
    const Owned norm = Random(rng_, DType::kBF16, {kLora});
    const Owned cos = Random(rng_, DType::kF32, {9, kRope / 2});
    const Owned sin = Random(rng_, DType::kF32, {9, kRope / 2});
    cases["RopeAndPage"] = [=, this](Device& device) {
      Owned rotated = q, data = latents_;
      const Owned positions = Ints({0, 8, 3, 3, 1, 2, 7});
      Owned slots(DType::kI64, {kRows});
      for (int64_t t = 0; t < kRows; ++t) slots.as<int64_t>()[t] = t == 2 ? -1 : 13 * t;
      EXPECT_OK(RopeAndPage(device, {.q = rotated.view(),
                                     .kv_a = kv_a.view(),
                                     .kv_norm = norm.view(),
                                     .cos = cos.view(),
                                     .sin = sin.view(),
                                     .positions = positions.view(),
                                     .slots = slots.view(),
                                     .pages = Pages(data)}));
      Bytes bytes = rotated.bytes();
      Append(data, &bytes);
      return bytes;
    };
    cases["MlaPrefill"] = [=, this](Device& device) {
      Owned out(DType::kBF16, {kRows, kHeads, kV});
      EXPECT_OK(MlaPrefill(device, {.q = q.view(),
                                    .kv_b = kv_b.view(),
                                    .pages = Pages(latents_),
                                    .batch = Batch(),
                                    .out = out.view(),
                                    .softmax_scale = 0.2f}));
      return out.bytes();
    };
    cases["MlaAbsorbQ"] = [=](Device& device) {
      Owned out(DType::kF32, {kRows, kHeads, kLora});
      EXPECT_OK(MlaAbsorbQ(device,
                           {.q = q.view(), .kv_b = kv_b.view(), .out = out.view(), .v = int{kV}}));
      return out.bytes();
    };
    cases["MlaDecode"] = [=, this](Device& device) {
      Owned out(DType::kBF16, {kRows, kHeads, kLora});
      EXPECT_OK(MlaDecode(device, {.q_lat = lat.view(),
                                   .q = q.view(),
                                   .pages = Pages(latents_),
                                   .batch = Batch(),
                                   .out = out.view(),
                                   .softmax_scale = 0.2f}));
      return out.bytes();
    };
    cases["MlaExpandV"] = [=](Device& device) {
      Owned out(DType::kBF16, {kRows, kHeads, kV});
      EXPECT_OK(MlaExpandV(device, {lat.view(), kv_b.view(), out.view()}));
      return out.bytes();
    };
  }

  void AddPages() {
    const std::vector<PageRange> ranges = {{5, 0, 16}, {1, 3, 9}, {0, 15, 1}};
    const int64_t message_bytes = 26 * KvEntryBytes(KvFormat::kFP8, kLora, kRope);
    cases["PagesPack"] = [=, this](Device& device) {
      Owned message(DType::kU8, {message_bytes}), checksum(DType::kI64, {1});
      PagesPackArgs args{.pages = Pages(latents_), .ranges = ranges, .message = message.view()};
      args.checksum = checksum.as<uint64_t>();
      EXPECT_OK(PagesPack(device, args));
      Bytes bytes = message.bytes();
      Append(checksum, &bytes);
      return bytes;
    };
    cases["PagesUnpack"] = [=, this](Device& device) {
      Owned message(DType::kU8, {message_bytes}), data = latents_;
      uint64_t checksum = 0;
      PagesPackArgs pack{.pages = Pages(latents_), .ranges = ranges, .message = message.view()};
      pack.checksum = &checksum;
      EXPECT_OK(PagesPack(device, pack));
      const std::vector<PageRange> target = {{0, 0, 16}, {3, 7, 9}, {2, 0, 1}};
      EXPECT_OK(PagesUnpack(device, {.pages = Pages(data),
                                     .ranges = target,
                                     .message = message.view(),
                                     .checksum = checksum}));
      return data.bytes();
    };
  }

  void AddMoe() {
    const Owned x = Random(rng_, DType::kBF16, {kRows, kHidden});
    const Owned gate = Random(rng_, DType::kF32, {12, kHidden}, 0.3f);
    const Owned bias = Random(rng_, DType::kF32, {12}, 0.1f);
    cases["MoeGate"] = [=](Device& device) {
      Owned experts(DType::kI32, {kRows, 3}), weights(DType::kF32, {kRows, 3});
      MoeGateArgs args{.x = x.view(), .gate = gate.view(), .bias = bias.view()};
      args.n_group = 4;
      args.topk_group = 2;
      args.top_k = 3;
      args.experts = experts.view();
      args.weights = weights.view();
      EXPECT_OK(MoeGate(device, args));
      Bytes bytes = experts.bytes();
      Append(weights, &bytes);
      return bytes;
    };
    std::vector<int32_t> chosen, rows;
    for (int32_t i = 0; i < kRows * 3; ++i) {
      chosen.push_back(i * 5 % 12);
      rows.push_back(i % 6 == 5 ? -1 : (i * 8) % 21);
    }
    const Owned experts = Ints(chosen, {kRows, 3}), row_ids = Ints(rows, {kRows, 3});
    cases["MoePermute"] = [=](Device& device) {
      Owned offsets(DType::kI32, {8}), tokens(DType::kI32, {kRows * 3});
      Owned places(DType::kI32, {kRows, 3});
      EXPECT_OK(
          MoePermute(device, {experts.view(), 2, offsets.view(), tokens.view(), places.view()}));
      Bytes bytes = offsets.bytes();
      Append(tokens, &bytes);
      Append(places, &bytes);
      return bytes;
    };
    const Owned y = Random(rng_, DType::kBF16, {kRows * 3, kHidden});
    const Owned weights = Random(rng_, DType::kF32, {kRows, 3});
    cases["MoeCombine"] = [=](Device& device) {
      Owned out(DType::kF32, {kRows, kHidden});
      EXPECT_OK(MoeCombine(device, {.y = y.view(),
                                    .rows = row_ids.view(),
                                    .experts = experts.view(),
                                    .weights = weights.view(),
                                    .shared = x.view(),
                                    .out = out.view()}));
      return out.bytes();
    };
  }

  void AddDispatch() {
    std::vector<int32_t> chosen;
    for (int32_t i = 0; i < kRows * 3; ++i) chosen.push_back(i * 5 % 12);
    const Owned slots = Ints(chosen, {kRows, 3});
    const Owned x = Random(rng_, DType::kBF16, {kRows, kHidden});
    const RecordLayout layout{.hidden = kHidden, .choices = 3};
    const auto plan = [=](Device& device, std::vector<Owned>* out) {
      *out = {Owned(DType::kI32, {3, 2}), Owned(DType::kI32, {kRows, 3}),
              Owned(DType::kI32, {kRows, 3})};
      const DispatchPlanArgs args{.physical = slots.view(),
                                  .slots_per_rank = 4,
                                  .counts = (*out)[0].view(),
                                  .records = (*out)[1].view(),
                                  .home_rows = (*out)[2].view()};
      EXPECT_OK(DispatchPlan(device, args));
      return args;
    };
    cases["MoeCount"] = [=](Device& device) {
      Owned counts(DType::kI32, {12});
      EXPECT_OK(MoeCount(device, {slots.view(), counts.view()}));
      return counts.bytes();
    };
    cases["CopyRows"] = [=](Device& device) {
      const Owned index = Ints({6, -1, 0, 3});
      Owned out(DType::kBF16, {4, kHidden});
      EXPECT_OK(CopyRows(device, {x.view(), index.view(), out.view()}));
      return out.bytes();
    };
    cases["DispatchPlan"] = [=](Device& device) {
      std::vector<Owned> out;
      plan(device, &out);
      Bytes bytes = out[0].bytes();
      Append(out[1], &bytes);
      Append(out[2], &bytes);
      return bytes;
    };
    cases["DispatchPack"] = [=](Device& device) {
      std::vector<Owned> out;
      const DispatchPlanArgs args = plan(device, &out);
      Owned message(DType::kU8, {kRows * 3, layout.bytes()});
      EXPECT_OK(DispatchPack(device, {layout, x.view(), {}, args, message.view()}));
      return message.bytes();
    };
    const RecordLayout codes{.hidden = kHidden, .choices = 3, .dtype = DType::kF8E4M3};
    Owned message(DType::kU8, {kRows, codes.bytes()});
    for (int64_t i = 0; i < message.elements(); ++i) {
      message.as<uint8_t>()[i] = static_cast<uint8_t>(i % 120);
    }
    for (int64_t t = 0; t < kRows; ++t) {
      const float scale = 0.5f + static_cast<float>(t);
      std::memcpy(message.view().row<uint8_t>(t) + codes.scales_at(), &scale, sizeof scale);
      const int32_t wanted[] = {t == 2 ? 9 : 3, 4, -7};
      std::memcpy(message.view().row<uint8_t>(t) + codes.slots_at(), wanted, sizeof wanted);
    }
    cases["DispatchUnpack"] = [=](Device& device) {
      Owned out(DType::kBF16, {kRows, kHidden}), wanted(DType::kI32, {kRows, 3});
      EXPECT_OK(DispatchUnpack(device, {codes, message.view(), 4, out.view(), wanted.view()}));
      Bytes bytes = out.bytes();
      Append(wanted, &bytes);
      return bytes;
    };
    cases["ReturnPlan"] = [=](Device& device) {
      const Owned pair_rows = Ints({3, -1, 0, -1, -1, 2, 1, -1, -1, 4, -1, -1}, {6, 2});
      Owned index(DType::kI32, {6});
      EXPECT_OK(ReturnPlan(device, {pair_rows.view(), 3, 3, index.view()}));
      return index.bytes();
    };
  }

  void AddLogits() {
    const Owned logits = Random(rng_, DType::kF32, {kRows, 101}, 2.0f);
    std::vector<int32_t> words;
    for (int i = 0; i < kRows * 4; ++i) words.push_back(static_cast<int32_t>(rng_.Next()));
    const Owned mask = Ints(words, {kRows, 4});
    cases["LogitsMask"] = [=](Device& device) {
      Owned masked = logits;
      EXPECT_OK(LogitsMask(device, {masked.view(), mask.view()}));
      return masked.bytes();
    };
    cases["Sample"] = [=](Device& device) {
      std::vector<SampleParams> params(kRows);
      for (size_t i = 0; i < params.size(); ++i) {
        params[i].temperature = i % 3 == 0 ? 0.0f : 1.1f;
        params[i].top_k = i % 2 == 0 ? 0 : 20;
        params[i].top_p = i % 4 == 1 ? 0.8f : 1.0f;
        params[i].seed = 17;
        params[i].position = static_cast<int64_t>(i);
      }
      std::vector<SampleResult> results(kRows);
      SampleArgs args{.logits = logits.view(), .params = params};
      args.results = absl::MakeSpan(results);
      EXPECT_OK(Sample(device, args));
      Bytes bytes;
      for (const SampleResult& result : results) Append(Ints({result.token}), &bytes);
      return bytes;
    };
  }

  Rng rng_{77};
  Owned latents_;
  // Seven rows: a decode step, four rows of a longer context, two rows of a fresh prompt.
  const Owned query_start_ = Ints({0, 1, 5, 7});
  const Owned context_len_ = Ints({17, 40, 2});
  const Owned table_ = Ints({4, 0, -1, 1, 5, 2, 3, -1, -1}, {3, 3});
};

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_OP_CASES_H_
