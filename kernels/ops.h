#ifndef BATON_KERNELS_OPS_H_
#define BATON_KERNELS_OPS_H_

// Every operation of the forward pass, once. Each function checks its arguments (ops.cc) and calls
// the backend's table.
//
// Conventions
//  - Layouts are row-major. "[T, H] rows" may have gaps between rows (strides[0] >= H); all else is
//  without gaps. Data is
//    aligned to its element size, no more. A T of 0 is legal everywhere and does nothing.
//  - TensorViews lie in the device's memory; spans, scalars and pointers in structs lie in the
//  host's.
//  - "act" is the activation dtype: F32 or BF16, the same for all "act" tensors of one call. The
//  residual stream is F32.
//  - A parameter marked "nullable" may be an absent view (TensorView{}).
//  - Sums are in F32 (double in `reference`), rounded once to the output's dtype: to nearest, ties
//  to even.
//  - ROW INVARIANCE: what is written for one row depends on that row's inputs only, bit for bit:
//  not on the other rows,
//    their number, the chunking or the thread count (one backend, one ISA level).
//  - ISA LEVELS of the cpu backend differ in the last bits wherever floats are summed: in the order
//  of a sum, and in the multiply-add, which rounds once from AVX2 on and twice at the portable
//  level
//  ("fused" below means the level's multiply-add). Embed, QuantizeFp8, PagesPack, PagesUnpack,
//  MoePermute, MoeCount, CopyRows, the ops of dispatch and return, LogitsMask and the token of
//  Sample are the same bits on every level and backend.
//  - Errors: INVALID_ARGUMENT for a wrong shape, dtype, alignment, null or range, naming value and
//  expectation; nothing is
//    written then. On host backends the contents of index tensors (ids, slots, page tables,
//    offsets) are checked too.
//  - Names of dimensions: T rows (tokens) of the batch, H hidden, K in and N out of a matrix, h
//  heads, E experts, k choices
//    of a token, S sequences, V vocabulary.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace baton::kernels {

// A weight matrix as checkpoints store it: [N, K] (out, in), BF16, F32 or F8E4M3.
struct Weight {
  TensorView w;       // [N, K] rows
  TensorView scales;  // F32 [ceil((first_row + N) / block_n), ceil(K / block_k)]; w[n][k] stands
                      // for w[n][k] * scales[(first_row + n) / block_n][k / block_k]. Required for
                      // F8E4M3, absent otherwise. This is the checkpoint's `weight_scale_inv`.
  int block_n = 128;  // > 0
  int block_k = 128;  // > 0, a multiple of 64
  int first_row = 0;  // in [0, block_n): where in its block w begins; not 0 only for some of Rows()
  bool absent() const { return w.absent(); }

  // Rows [begin, end) of this matrix (outputs begin .. end - 1 of the linear map), in place.
  Weight Rows(int64_t begin, int64_t end) const;
};

// ---------------------------------------------------------------------------------------------------------------------
// Rows in, rows out

// out[t] = table[ids[t]]. INVALID_ARGUMENT for an id outside [0, V).
struct EmbedArgs {
  TensorView ids;    // I32 [T]
  TensorView table;  // BF16 or F32 [V, H] rows
  TensorView out;    // out: F32 [T, H] rows
};
absl::Status Embed(Device& device, const EmbedArgs& args);

// RMS norm (Zhang and Sennrich 2019): x += add (if given, rounded to x's dtype); out = x /
// sqrt(mean(x^2) + eps) * weight.
struct RmsNormArgs {
  TensorView x;       // F32 or BF16 [T, H] rows; in and out when `add` is given, else only read
  TensorView add;     // nullable: F32 or BF16 [T, H] rows, added into x first
  TensorView weight;  // BF16 or F32 [H]
  TensorView out;     // out: F32 or BF16 [T, H] rows; may be x itself when the dtypes agree
  float eps = 1e-6f;  // >= 0
};
absl::Status RmsNorm(Device& device, const RmsNormArgs& args);

enum class Epilogue : uint8_t {
  kNone,     // out = x w^T
  kSiluMul,  // out = silu(x w^T) * (x w2^T), silu(z) = z / (1 + exp(-z)); w is the gate and w2 the
             // up projection
  kAdd,      // out += x w^T (out F32)
};

// A dense layer without bias. One block scale multiplies its block_k-deep partial sum.
//
// With E4M3 on both sides (as DeepSeek-V3 was trained: its report, section 3.3.2) x stands for
// x[t][k]
// * x_scales[t][k / 128], and the 128-deep partial sum of products of codes is multiplied by the
// product of both scales, rounded to F32.
struct LinearArgs {
  TensorView x;              // act or F8E4M3 [T, K] rows
  TensorView x_scales = {};  // F32 [T, ceil(K / 128)] rows for F8E4M3 (as QuantizeFp8 makes them),
                             // where w is F8E4M3 with block_k 128; else absent
  Weight w;                  // [N, K]
  Weight w2;                 // kSiluMul only: [N, K], same dtype and blocks as w
  TensorView out;  // out (kAdd: in and out): [T, N] rows of F32 or act (with F8E4M3: BF16)
  Epilogue epilogue = Epilogue::kNone;
};
absl::Status Linear(Device& device, const LinearArgs& args);

// Quantizes groups of 128 along K: scale = max|x| / 448 (1 for an all-zero group), out = round(x /
// scale), ties to even. A group that holds NaN or inf gets scale NaN.
struct QuantizeFp8Args {
  TensorView x;               // act [T, K] rows
  TensorView out;             // out: F8E4M3 [T, K] rows
  TensorView scales;          // out: F32 [T, ceil(K / 128)] rows
  TensorView row_count = {};  // nullable: I32 [1], in [0, T]: rows at and behind it are left out
};
absl::Status QuantizeFp8(Device& device, const QuantizeFp8Args& args);

// ---------------------------------------------------------------------------------------------------------------------
// Latent pages

// Layout of one token's entry in one layer (little-endian, no padding). kF32 serves comparisons
// with float oracles.
enum class KvFormat : uint8_t {
  kBF16,  // kv_lora BF16 latents, rope BF16 rotary keys: 1152 B at 512/64
  kFP8,   // kv_lora E4M3, ceil(kv_lora / 128) F32 scales (as QuantizeFp8), rope BF16: 656 B at
          // 512/64
  kF32,   // kv_lora F32, rope F32
};
const char* KvFormatName(KvFormat format);
// Bytes of one token's entry in one layer.
int64_t KvEntryBytes(KvFormat format, int64_t kv_lora, int64_t rope);

// The pages of one layer. Entry of (page, offset) starts at byte offset * KvEntryBytes of row
// `page`.
struct KvPages {
  TensorView data;  // U8 [num_pages, page_bytes] rows, page_bytes >= page_tokens * KvEntryBytes;
                    // 4-byte aligned rows
  KvFormat format = KvFormat::kBF16;
  int page_tokens = 64;  // 16..256
  int kv_lora = 0;       // a multiple of 32, 32..4096
  int rope = 0;          // even, 2..256
};

// Which rows belong to which sequence, and where its context lies. Row i of a sequence with R =
// query_start[s+1] - query_start[s] rows stands at position context_len[s] - R + i and sees the
// keys at positions 0 .. its own, all of which must be in the pages (RopeAndPage comes first, for
// the chunk's own rows too).
struct PagedBatch {
  TensorView query_start;  // I32 [S + 1], ascending from 0 to T
  TensorView context_len;  // I32 [S], tokens including this call's rows; >= R
  TensorView page_table;   // I32 [S, max_pages] rows: page id of positions [i * page_tokens, ...);
                           // entries at and behind ceil(context_len / page_tokens) are not read
  int64_t context_tokens = 0;  // at least the sum of context_len; 0: not known. Bounds working
                               // memory where context_len cannot be read by the host.
};

// Per row: rotates q's last `rope` values and the rotary key (interleaved pairs (0,1), (2,3), ...,
// as checkpoints store them: (a, b) -> (a cos - b sin, a sin + b cos)), norms the latent (RMS,
// kv_a_layernorm) and writes both to the page slot. Either half may be left out: q, or kv_a with
// kv_norm, slots and eps.
struct RopeAndPageArgs {
  TensorView q;          // nullable, in and out: act [T, h, nope + rope]
  TensorView kv_a;       // nullable: act [T, kv_lora + rope] rows: output of kv_a_proj_with_mqa
  TensorView kv_norm;    // BF16 or F32 [kv_lora]
  TensorView cos;        // F32 [max_position, rope / 2]; any factor of YaRN included
  TensorView sin;        // F32 [max_position, rope / 2]
  TensorView positions;  // I32 [T], each in [0, max_position)
  TensorView slots;   // I64 [T]: page id * page_tokens + offset; negative: the row is not written
  KvPages pages;      // in and out; without kv_a only `rope` and the limits count
  float eps = 1e-6f;  // of the norm
};
absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args);

// Attention in MHA form (DeepSeek-V2, section 2.1): keys and values of each head are expanded from
// the latents in the pages.
//   k[j] = (W_UK latent[j], rotary[j]), v[j] = W_UV latent[j], out = sum_j softmax_j(scale * q .
//   k[j]) v[j]
// Online softmax over blocks of 64 keys at absolute positions, ascending.
struct MlaPrefillArgs {
  TensorView q;  // act [T, h, nope + rope], rotated
  Weight kv_b;   // [h * (nope + v), kv_lora]: for each head nope rows of W_UK, then v rows of W_UV
  KvPages pages;
  PagedBatch batch;
  TensorView out;              // out: act [T, h, v]
  float softmax_scale = 0.0f;  // > 0
};
absl::Status MlaPrefill(Device& device, const MlaPrefillArgs& args);

// The absorbed form, step 1: out[t][i] = q_nope[t][i] W_UK[i] for every head i.
struct MlaAbsorbQArgs {
  TensorView q;    // act [T, h, nope + rope]; the first nope values of each head are read
  Weight kv_b;     // as in MlaPrefillArgs
  TensorView out;  // out: F32 or act [T, h, kv_lora]
  int v = 0;       // value dims of a head; nope follows from kv_b: N / h - v
};
absl::Status MlaAbsorbQ(Device& device, const MlaAbsorbQArgs& args);

// Step 2, attention on latents: out[t][i] = sum_j softmax_j(scale * (q_lat . latent[j] + q_pe .
// rotary[j])) latent[j]. Splits of 256 keys at absolute positions, each an online softmax over its
// blocks of 64, merged in ascending order.
struct MlaDecodeArgs {
  TensorView q_lat;  // F32 or act [T, h, kv_lora]: MlaAbsorbQ's output
  TensorView q;      // act [T, h, nope + rope], rotated; the last rope values of each head are read
  KvPages pages;
  PagedBatch batch;
  TensorView out;              // out: F32 or act [T, h, kv_lora]
  float softmax_scale = 0.0f;  // > 0
};
absl::Status MlaDecode(Device& device, const MlaDecodeArgs& args);

// Step 3: out[t][i] = W_UV[i] o_lat[t][i].
struct MlaExpandVArgs {
  TensorView o_lat;  // F32 or act [T, h, kv_lora]
  Weight kv_b;       // as in MlaPrefillArgs
  TensorView out;    // out: act [T, h, v]
};
absl::Status MlaExpandV(Device& device, const MlaExpandVArgs& args);

// What a page range is: `count` tokens from `first` on in page `page`.
struct PageRange {
  int32_t page = 0;
  int32_t first = 0;
  int32_t count = 0;
};

// Copies entries of one layer into a message, range after range without gaps, and returns the
// message's checksum (XXH3, 64 bits, `seed`).
struct PagesPackArgs {
  KvPages pages;
  absl::Span<const PageRange> ranges;
  TensorView message;            // out: U8 [sum of counts * KvEntryBytes], in any memory
  uint64_t seed = 0;             // of the checksum: binds the message to its header
  uint64_t* checksum = nullptr;  // out, host memory
};
absl::Status PagesPack(Device& device, const PagesPackArgs& args);

// The reverse. DATA_LOSS, with the pages untouched, when the message's checksum is not `checksum`.
struct PagesUnpackArgs {
  KvPages pages;  // in and out
  absl::Span<const PageRange> ranges;
  TensorView message;  // U8 [sum of counts * KvEntryBytes], in any memory; free on return
  uint64_t seed = 0;
  uint64_t checksum = 0;  // expected
};
absl::Status PagesUnpack(Device& device, const PagesUnpackArgs& args);

// ---------------------------------------------------------------------------------------------------------------------
// Mixture of experts

enum class GateScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t {
  kMax,        // best score of the group (V2)
  kSumOfTop2,  // sum of the two best biased scores (V3)
};

// Router of a MoE layer (DeepSeek-V2 section 2.2, V3 section 2.1.2). s = softmax or sigmoid of x
// w^T; choose by s + bias: the topk_group best groups, then the top_k best experts in them, ties to
// the lowest id. Weights are s (no bias), divided by (their sum + 1e-20) if `normalize`, times
// `scale`.
struct MoeGateArgs {
  TensorView x;     // act [T, H] rows
  TensorView gate;  // BF16 or F32 [E, H] rows
  TensorView bias;  // nullable: F32 [E]
  GateScore score = GateScore::kSigmoid;
  GroupScore group_score = GroupScore::kSumOfTop2;
  int n_group = 1;     // divides E; with kSumOfTop2 and n_group > 1 a group has at least 2 experts
  int topk_group = 1;  // 1..n_group
  int top_k = 1;       // 1..min(64, topk_group * E / n_group)
  bool normalize = true;
  float scale = 1.0f;

  TensorView experts;  // out: I32 [T, k] logical ids, best first
  TensorView weights;  // out: F32 [T, k], of the same choices

  // Redundant experts; all three absent or all three given. physical = replicas[e][row_hash %
  // replica_count[e]].
  TensorView replicas;       // nullable: I32 [E, max_replicas], physical ids
  TensorView replica_count;  // nullable: I32 [E], 1..max_replicas
  TensorView row_hash;  // nullable: I32 [T], taken as unsigned; a function of the token alone (e.g.
                        // of its position)
  TensorView physical;  // out, nullable (required with `replicas`): I32 [T, k]
};
absl::Status MoeGate(Device& device, const MoeGateArgs& args);

// Groups the (token, choice) pairs by expert. Experts [first_expert, first_expert + E) are here;
// other choices are skipped. Pairs of one expert keep their order (token, then choice).
struct MoePermuteArgs {
  TensorView experts;  // I32 [T, k], ids of the slots to run in (physical ids where there are
                       // replicas), each >= 0
  int first_expert = 0;
  TensorView
      offsets;  // out: I32 [E + 1]: pairs of local expert e are rows [offsets[e], offsets[e + 1])
  TensorView row_tokens;  // out: I32 [R]: token of each row; rows at and behind offsets[E] get -1.
                          // R is T * k, or less where fewer pairs are here: what is too much is
                          // left out, so that offsets[E] <= R whatever `experts` holds
  TensorView rows;        // out: I32 [T, k]: row of each pair, -1 when its expert is elsewhere
};
absl::Status MoePermute(Device& device, const MoePermuteArgs& args);

// One Linear for each expert: rows [offsets[e], offsets[e + 1]) of out use w[e]. Arithmetic per row
// as in Linear. Weights of experts without rows are not touched.
struct GroupedLinearArgs {
  TensorView x;              // act or F8E4M3 [M, K] rows
  TensorView x_scales = {};  // as in LinearArgs, for the rows of x
  TensorView row_index;  // nullable: I32 [R], row of x that row r of out reads, in [0, M); absent:
                         // row r itself (M >= R)
  TensorView
      offsets;  // I32 [E + 1], ascending from 0; offsets[E] <= R. Rows behind it are not written.
  absl::Span<const Weight> w;           // E weights of one shape [N, K], dtype and block size
  absl::Span<const Weight> w2;          // kSiluMul only: the same again
  TensorView out;                       // out: [R, N] rows, dtype as in LinearArgs
  Epilogue epilogue = Epilogue::kNone;  // kNone or kSiluMul
};
absl::Status GroupedLinear(Device& device, const GroupedLinearArgs& args);

// out[t] = (accumulate ? out[t] : 0) + (shared[t] + sum over choices in ascending `experts` id of
// weight * row). The inner sum starts at 0, adds the choices by fused multiply-add, then shared.
// Choices with rows = -1 are left out.
struct MoeCombineArgs {
  TensorView y;     // F32 or BF16 [R, H] rows: the experts' outputs
  TensorView rows;  // I32 [T, k] from MoePermute, each < R
  TensorView
      experts;  // I32 [T, k]: logical ids, so that the order does not depend on the placement
  TensorView weights;  // F32 [T, k]
  TensorView shared;   // nullable: F32 or BF16 [T, H] rows: output of the shared experts
  bool accumulate = false;
  TensorView out;  // out (in and out if accumulate): F32 [T, H] rows
};
absl::Status MoeCombine(Device& device, const MoeCombineArgs& args);

// choices[e] += how often the rows of `experts` that count hold e.
struct MoeCountArgs {
  TensorView experts;  // I32 [T, k], each in [0, E)
  TensorView choices;  // in and out: I32 [E]
  TensorView slots =
      {};  // nullable: I64 [T], as RopeAndPage's: rows with a negative one do not count
};
absl::Status MoeCount(Device& device, const MoeCountArgs& args);

// ---------------------------------------------------------------------------------------------------------------------
// Rows between ranks

// out[t] = x[index[t]], or x[t] without an index. Where the index is negative out[t] stays.
struct CopyRowsArgs {
  TensorView x;      // [M, N] rows of any dtype
  TensorView index;  // nullable: I32 [T], each < M; absent: M == T
  TensorView out;    // out: [T, N] rows of the same dtype; does not overlap x
};
absl::Status CopyRows(Device& device, const CopyRowsArgs& args);

// A row on its way to the experts of another rank: its values (act, or E4M3 codes with the scales
// of their groups of 128), and for each choice the slot that it wants there.
struct RecordLayout {
  int64_t hidden = 0;          // H
  int choices = 1;             // k, 1..64
  DType dtype = DType::kBF16;  // of the values: act or F8E4M3
  constexpr int64_t row_bytes() const { return hidden * static_cast<int64_t>(DTypeBytes(dtype)); }
  constexpr int64_t scales() const { return dtype == DType::kF8E4M3 ? (hidden + 127) / 128 : 0; }
  constexpr int64_t scales_at() const { return (row_bytes() + 3) / 4 * 4; }  // F32 [scales()]
  constexpr int64_t slots_at() const { return scales_at() + 4 * scales(); }  // I32 [k]
  // Zeros lie between the parts; a multiple of 16, so that all records of a message are aligned.
  constexpr int64_t bytes() const { return (slots_at() + 4 * choices + 15) / 16 * 16; }
};

// Where rows go. A layer's experts lie in slots, `slots_per_rank` on each rank; a row goes once to
// each rank of which it chose slots, and each chosen slot's output comes back by itself. What goes
// to a rank is one block of the message, in the order of the rows; what comes home from it one
// block of the other, in the order of rows, then choices. Packed (both capacities 0) the ranks'
// blocks lie without gaps; otherwise block r begins at record r * row_capacity and pair r *
// pair_capacity, so that the host needs to know no counts. Pairs that do not fit are left out.
struct DispatchPlanArgs {
  TensorView physical;     // I32 [T, k], in [0, ranks * slots_per_rank)
  int slots_per_rank = 1;  // 1..65536
  int row_capacity = 0;    // 0, or at least T
  int pair_capacity = 0;   // 0 exactly where row_capacity is
  TensorView counts;       // out: I32 [ranks, 2]: rows and pairs for each, those left out too
  TensorView records;      // out: I32 [T, k]: at the row's first choice of each rank its record in
                           // the message, else -1
  TensorView home_rows;    // out: I32 [T, k]: row of each choice's output at home; -1: left out
  TensorView blocks;       // nullable, and absent if packed: I32 [ranks]: number of each rank's
                           // block; -1: none, and nothing goes there
  TensorView most_pairs;   // nullable, in and out: I32 [1]: raised to the most pairs for one rank
};
absl::Status DispatchPlan(Device& device, const DispatchPlanArgs& args);

// Writes the message. Of records without a row the slots are written (none is wanted), no more.
struct DispatchPackArgs {
  RecordLayout layout;
  TensorView x;       // layout.dtype [T, H] rows
  TensorView scales;  // F32 [T, ceil(H / 128)] rows for F8E4M3, else absent
  DispatchPlanArgs plan;
  TensorView out;  // out: U8 [N, layout.bytes()], 16-byte aligned; packed: N at least the sum of
                   // the counts' rows, else the number of blocks * row_capacity
};
absl::Status DispatchPack(Device& device, const DispatchPackArgs& args);

// Reads a message that came.
struct DispatchUnpackArgs {
  RecordLayout layout;
  TensorView records;      // U8 [R, layout.bytes()], 16-byte aligned
  int slots_per_rank = 1;  // as in DispatchPlanArgs
  TensorView x;      // out, nullable, with F8E4M3 alone: act [R, H] rows: code * scale, rounded
                     // to act; not of records that want no slot
  TensorView slots;  // out: I32 [R, k]; slots_per_rank: of another rank
};
absl::Status DispatchUnpack(Device& device, const DispatchUnpackArgs& args);

// Where the outputs stand in the message home: CopyRows's index for it.
struct ReturnPlanArgs {
  TensorView pair_rows;  // I32 [R, k]: MoePermute's rows of DispatchUnpack's slots
  int row_capacity = 0;  // of the DispatchPlan of all ranks; R is a multiple of it
  int pair_capacity = 0;
  TensorView index;  // out: I32 [P]: -1 in places without a pair; packed: P at least the number of
                     // pairs, else R / row_capacity * pair_capacity
};
absl::Status ReturnPlan(Device& device, const ReturnPlanArgs& args);

// ---------------------------------------------------------------------------------------------------------------------
// Logits

// logits[t][i] = -inf where bit i % 32 of mask[t][i / 32] is 0.
struct LogitsMaskArgs {
  TensorView logits;  // in and out: F32 [T, V] rows
  TensorView mask;    // I32 [T, ceil(V / 32)] rows, words taken as unsigned
};
absl::Status LogitsMask(Device& device, const LogitsMaskArgs& args);

// A token seen in the prompt or generated so far.
struct TokenCount {
  int32_t token = 0;
  int32_t generated = 0;  // times it was generated; 0: it stands in the prompt only
};

struct SampleParams {
  float temperature = 1.0f;           // >= 0; 0: greedy (argmax, lowest id on ties)
  int32_t top_k = 0;                  // 0: off
  float top_p = 1.0f;                 // (0, 1]; 1: off
  float min_p = 0.0f;                 // [0, 1]; 0: off
  float repetition_penalty = 1.0f;    // > 0; logit > 0 ? logit / p : logit * p for every token seen
  float presence_penalty = 0.0f;      // subtracted once for a token generated at least once
  float frequency_penalty = 0.0f;     // subtracted `generated` times
  absl::Span<const TokenCount> seen;  // each token at most once; needed only with penalties
  uint64_t seed = 0;
  int64_t position = 0;  // of the token to draw, in its sequence; (seed, position) fixes the draw
  int32_t top_logprobs = 0;  // 0..20: how many of the most likely tokens to report
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct SampleResult {
  int32_t token =
      -1;  // -1: the row holds NaN or +inf, or nothing but -inf: there is no distribution
  float logprob = 0.0f;   // natural log of softmax(logits) before penalties and temperature
  int32_t top_count = 0;  // min(top_logprobs, tokens that are not masked)
  TokenLogprob top[20];   // the first top_count are set: most likely first, ties to the lowest id
};

// Chooses one token for each row, in this order: penalties (repetition, then frequency and
// presence), temperature, top-k (ties at the border to the lowest ids), top-p (the shortest prefix
// of the order by probability whose mass reaches top_p), min-p (at least min_p times the best),
// draw. A token weighs exp((logit - best) / temperature), rounded to a multiple of 2^-42
// (draw_weight.h: sums of integers have no order, so every backend draws the same token); kept
// tokens are walked in ascending id, and the draw is u = (53 bits of Philox4x32 with counter
// (position, 0), key seed) * 2^-53.
struct SampleArgs {
  TensorView logits;                      // F32 [T, V] rows, V at most 2^21
  absl::Span<const SampleParams> params;  // [T]
  absl::Span<SampleResult> results;       // out: [T]
};
absl::Status Sample(Device& device, const SampleArgs& args);

}  // namespace baton::kernels

#endif  // BATON_KERNELS_OPS_H_
