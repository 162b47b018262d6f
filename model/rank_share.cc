#include "model/rank_share.h"

namespace baton::model {
namespace {

// The rows of a matrix of all heads that belong to these.
kernels::Weight OfHeads(const kernels::Weight& weight, int64_t heads, const Share& mine) {
  if (weight.absent()) return weight;
  const int64_t per_head = weight.w.dim(0) / heads;
  return weight.Rows(mine.begin * per_head, mine.end * per_head);
}

}  // namespace

Weights ShareOfRank(const ModelConfig& config, const Weights& weights, Split split, int32_t ranks,
                    int32_t rank) {
  Weights share = ViewsOf(weights);
  if (split != Split::kTensor || ranks == 1) return share;
  const Share mine = HeadsOf(config.heads, rank, ranks);
  for (LayerWeights& layer : share.layers) {
    AttentionWeights& attention = layer.attention;
    attention.q = OfHeads(attention.q, config.heads, mine);
    attention.q_b = OfHeads(attention.q_b, config.heads, mine);
    attention.kv_b = OfHeads(attention.kv_b, config.heads, mine);
  }
  if (rank > 0) share.head = {};
  return share;
}

}  // namespace baton::model
