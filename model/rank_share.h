#ifndef BATON_MODEL_RANK_SHARE_H_
#define BATON_MODEL_RANK_SHARE_H_

// Which of a model's weights one rank of a group reads: the split of docs/parallelism.md, as views.
// Pure.

#include <cstdint>

#include "model/config.h"
#include "model/rank_group.h"
#include "model/weights.h"

namespace baton::model {

// Where several ranks split heads (Split::kTensor), the rows of this rank's heads in q or q_b and
// in kv_b, and the head on rank 0 alone, which samples. All else is whole; of the routed experts,
// which have slots, all are there (expert_tables.h). Borrows what `weights` points to.
Weights ShareOfRank(const ModelConfig& config, const Weights& weights, Split split, int32_t ranks,
                    int32_t rank);

}  // namespace baton::model

#endif  // BATON_MODEL_RANK_SHARE_H_
