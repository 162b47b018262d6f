#ifndef BATON_MODEL_MLA_H_
#define BATON_MODEL_MLA_H_

// Multi-head latent attention of one layer (DeepSeek-V2 report, section 2.1), in two steps so that
// the latents can be shipped between them. Both read `a.normed` (the layer's normed input) or what
// the first step left. In a tensor-parallel group a rank makes the inputs of its own rows, gets
// those of all rows (AllGather), attends with its heads, and gets all heads of its own rows
// (AllToAllV); every rank writes all latents. The weights are the rank's share
// (model/rank_share.h).

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/rank_group.h"
#include "model/weights.h"
#include "scheduler/types.h"

namespace baton::model {

// What all layers of one pass share.
struct PassContext {
  kernels::Device& device;
  const ModelConfig& config;
  const Activations& a;  // cut to the pass's rows
  const RankGroup& group;
  Share own;  // rows of the pass that are this rank's
  scheduler::Form form = scheduler::Form::kPrefill;
  kernels::PagedBatch batch;
  kernels::TensorView cos;  // F32 [positions, rope / 2]
  kernels::TensorView sin;
  float softmax_scale = 0.0f;
};

// Projects q and the latent from a.normed, rotates both and writes the latents into `pages`. Leaves
// the rank's heads of q in a.q.
absl::Status WriteLatentsAndQueries(const PassContext& pass, const AttentionWeights& w,
                                    const kernels::KvPages& pages);

// The two halves of it, with the same bits, for a layer in which some rows need but the first.
absl::Status WriteLatents(const PassContext& pass, const AttentionWeights& w,
                          const kernels::KvPages& pages);
absl::Status MakeQueries(const PassContext& pass, const AttentionWeights& w,
                         const kernels::KvPages& pages);

// Attends from a.q to the pages, in the pass's form, and adds the output projection to a.hidden.
absl::Status Attend(const PassContext& pass, const AttentionWeights& w,
                    const kernels::KvPages& pages);

}  // namespace baton::model

#endif  // BATON_MODEL_MLA_H_
