// Rotation, paging and both forms of Multi-head Latent Attention.

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/page_entry.h"
#include "kernels/reference/reference_ops.h"
#include "kernels/reference/values.h"

namespace baton::kernels::reference {
namespace {

struct Latent {
  std::vector<float> latent, rotary;
};

std::vector<Latent> ReadContext(const KvPages& pages, const PagedBatch& batch, int64_t sequence,
                                int64_t tokens) {
  std::vector<Latent> context(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens; ++i) {
    Latent& entry = context[static_cast<size_t>(i)];
    entry.latent.resize(static_cast<size_t>(pages.kv_lora));
    entry.rotary.resize(static_cast<size_t>(pages.rope));
    ReadEntry(pages, EntryAtPosition(pages, batch.page_table.row<const int32_t>(sequence), i),
              entry.latent.data(), entry.rotary.data());
  }
  return context;
}

// In place: scores to probabilities.
void Softmax(std::vector<double>& scores) {
  double best = -std::numeric_limits<double>::infinity();
  for (double score : scores) best = std::max(best, score);
  double sum = 0.0;
  for (double& score : scores) sum += score = std::exp(score - best);
  for (double& score : scores) score /= sum;
}

// Calls body(sequence, first row, one past its last row, context length).
template <typename Body>
void ForEachSequence(const PagedBatch& batch, const Body& body) {
  const int32_t* start = batch.query_start.as<const int32_t>();
  for (int64_t s = 0; s < batch.context_len.dim(0); ++s) {
    if (start[s] < start[s + 1]) {
      body(s, start[s], start[s + 1], batch.context_len.as<const int32_t>()[s]);
    }
  }
}

// W latent for every token of the context: [tokens, rows of kv_b].
std::vector<double> Expand(const std::vector<Latent>& context, const Weight& kv_b) {
  const int64_t rows = kv_b.w.dim(0), kv_lora = kv_b.w.dim(1);
  std::vector<double> expanded(context.size() * static_cast<size_t>(rows));
  for (int64_t n = 0; n < rows; ++n) {
    std::vector<double> weight;
    for (int64_t c = 0; c < kv_lora; ++c) weight.push_back(At(kv_b, n, c));
    for (size_t j = 0; j < context.size(); ++j) {
      double sum = 0.0;
      for (size_t c = 0; c < weight.size(); ++c) sum += weight[c] * context[j].latent[c];
      expanded[j * static_cast<size_t>(rows) + static_cast<size_t>(n)] = sum;
    }
  }
  return expanded;
}

// The rotary part of q (its last dims of head i) times a rotary key.
double RotaryDot(const TensorView& q, int64_t t, int64_t i, const Latent& entry) {
  const int64_t rope = static_cast<int64_t>(entry.rotary.size());
  double sum = 0.0;
  for (int64_t d = 0; d < rope; ++d) {
    sum += At(q, t, (i + 1) * q.dim(2) - rope + d) * entry.rotary[static_cast<size_t>(d)];
  }
  return sum;
}

void Rotate(double a, double b, double cos, double sin, double& out_a, double& out_b) {
  out_a = a * cos - b * sin;
  out_b = a * sin + b * cos;
}

void RotateQueries(const RopeAndPageArgs& args, int64_t t) {
  const int64_t head = args.q.dim(2), rope = args.pages.rope;
  const int64_t position = args.positions.as<const int32_t>()[t];
  for (int64_t i = 0; i < args.q.dim(1); ++i) {
    for (int64_t d = 0; d < rope; d += 2) {
      const int64_t at = (i + 1) * head - rope + d;
      double a, b;
      Rotate(At(args.q, t, at), At(args.q, t, at + 1), At(args.cos, position, d / 2),
             At(args.sin, position, d / 2), a, b);
      Put(args.q, t, at, a);
      Put(args.q, t, at + 1, b);
    }
  }
}

void PageRow(const RopeAndPageArgs& args, int64_t t) {
  const int64_t kv_lora = args.pages.kv_lora, rope = args.pages.rope;
  const int64_t position = args.positions.as<const int32_t>()[t];
  const int64_t slot = args.slots.as<const int64_t>()[t];
  if (slot < 0) return;
  double squares = 0.0;
  for (int64_t i = 0; i < kv_lora; ++i) squares += At(args.kv_a, t, i) * At(args.kv_a, t, i);
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(kv_lora) + args.eps);
  const TensorView norm = args.kv_norm.Reshape({1, kv_lora});
  std::vector<float> latent(static_cast<size_t>(kv_lora)), rotary(static_cast<size_t>(rope));
  for (int64_t i = 0; i < kv_lora; ++i) {
    latent[static_cast<size_t>(i)] =
        static_cast<float>(At(args.kv_a, t, i) * inverse * At(norm, 0, i));
  }
  for (int64_t d = 0; d < rope; d += 2) {
    double a, b;
    Rotate(At(args.kv_a, t, kv_lora + d), At(args.kv_a, t, kv_lora + d + 1),
           At(args.cos, position, d / 2), At(args.sin, position, d / 2), a, b);
    rotary[static_cast<size_t>(d)] = static_cast<float>(a);
    rotary[static_cast<size_t>(d) + 1] = static_cast<float>(b);
  }
  WriteEntry(args.pages, latent.data(), rotary.data(), EntryAtSlot(args.pages, slot));
}

}  // namespace

absl::Status RopeAndPage(Device&, const RopeAndPageArgs& args) {
  for (int64_t t = 0; t < args.positions.dim(0); ++t) {
    if (!args.q.absent()) RotateQueries(args, t);
    if (!args.kv_a.absent()) PageRow(args, t);
  }
  return absl::OkStatus();
}

absl::Status MlaPrefill(Device&, const MlaPrefillArgs& args) {
  const int64_t heads = args.q.dim(1), head = args.q.dim(2), v = args.out.dim(2);
  const int64_t nope = head - args.pages.rope, per_head = nope + v;
  ForEachSequence(args.batch, [&](int64_t s, int64_t begin, int64_t end, int64_t length) {
    const std::vector<Latent> context = ReadContext(args.pages, args.batch, s, length);
    const std::vector<double> expanded = Expand(context, args.kv_b);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t keys = length - end + t + 1;
      for (int64_t i = 0; i < heads; ++i) {
        const auto key_value = [&](int64_t j, int64_t d) {
          return expanded[static_cast<size_t>((j * heads + i) * per_head + d)];
        };
        std::vector<double> scores;
        for (int64_t j = 0; j < keys; ++j) {
          double score = 0.0;
          for (int64_t d = 0; d < nope; ++d) score += At(args.q, t, i * head + d) * key_value(j, d);
          score += RotaryDot(args.q, t, i, context[static_cast<size_t>(j)]);
          scores.push_back(score * args.softmax_scale);
        }
        Softmax(scores);
        for (int64_t d = 0; d < v; ++d) {
          double sum = 0.0;
          for (int64_t j = 0; j < keys; ++j) {
            sum += scores[static_cast<size_t>(j)] * key_value(j, nope + d);
          }
          Put(args.out, t, i * v + d, sum);
        }
      }
    }
  });
  return absl::OkStatus();
}

absl::Status MlaAbsorbQ(Device&, const MlaAbsorbQArgs& args) {
  const int64_t heads = args.q.dim(1), head = args.q.dim(2), kv_lora = args.out.dim(2);
  const int64_t per_head = args.kv_b.w.dim(0) / heads, nope = per_head - args.v;
  for (int64_t t = 0; t < args.q.dim(0); ++t) {
    for (int64_t i = 0; i < heads; ++i) {
      for (int64_t c = 0; c < kv_lora; ++c) {
        double sum = 0.0;
        for (int64_t d = 0; d < nope; ++d) {
          sum += At(args.q, t, i * head + d) * At(args.kv_b, i * per_head + d, c);
        }
        Put(args.out, t, i * kv_lora + c, sum);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status MlaDecode(Device&, const MlaDecodeArgs& args) {
  const int64_t heads = args.q.dim(1), kv_lora = args.pages.kv_lora;
  ForEachSequence(args.batch, [&](int64_t s, int64_t begin, int64_t end, int64_t length) {
    const std::vector<Latent> context = ReadContext(args.pages, args.batch, s, length);
    for (int64_t t = begin; t < end; ++t) {
      const size_t keys = static_cast<size_t>(length - end + t + 1);
      for (int64_t i = 0; i < heads; ++i) {
        std::vector<double> scores;
        for (size_t j = 0; j < keys; ++j) {
          double score = 0.0;
          for (int64_t c = 0; c < kv_lora; ++c) {
            score += At(args.q_lat, t, i * kv_lora + c) * context[j].latent[static_cast<size_t>(c)];
          }
          score += RotaryDot(args.q, t, i, context[j]);
          scores.push_back(score * args.softmax_scale);
        }
        Softmax(scores);
        for (int64_t c = 0; c < kv_lora; ++c) {
          double sum = 0.0;
          for (size_t j = 0; j < keys; ++j) {
            sum += scores[j] * context[j].latent[static_cast<size_t>(c)];
          }
          Put(args.out, t, i * kv_lora + c, sum);
        }
      }
    }
  });
  return absl::OkStatus();
}

absl::Status MlaExpandV(Device&, const MlaExpandVArgs& args) {
  const int64_t heads = args.o_lat.dim(1), kv_lora = args.o_lat.dim(2), v = args.out.dim(2);
  const int64_t per_head = args.kv_b.w.dim(0) / heads, nope = per_head - v;
  for (int64_t t = 0; t < args.o_lat.dim(0); ++t) {
    for (int64_t i = 0; i < heads; ++i) {
      for (int64_t d = 0; d < v; ++d) {
        double sum = 0.0;
        for (int64_t c = 0; c < kv_lora; ++c) {
          sum += At(args.o_lat, t, i * kv_lora + c) * At(args.kv_b, i * per_head + nope + d, c);
        }
        Put(args.out, t, i * v + d, sum);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::reference
