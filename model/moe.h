#ifndef BATON_MODEL_MOE_H_
#define BATON_MODEL_MOE_H_

// The feed-forward half of a layer: a plain gated MLP, or experts (DeepSeek-V3 report,
// section 2.1.2). Both read a.normed and add their output to a.hidden.

#include "absl/status/status.h"
#include "model/expert_exchange.h"
#include "model/expert_tables.h"
#include "model/mla.h"
#include "model/weights.h"

namespace baton::model {

absl::Status RunMlp(const PassContext& pass, const MlpWeights& w);

// shared(x) + sum over the chosen experts, in expert order, of weight * expert(x).
absl::Status RunMoe(const PassContext& pass, const MoeWeights& w);

// The same where the experts of MoE layer `layer` lie in the slots of a group's ranks, in three
// steps between which the caller may compute for other rows. Every rank of the group takes them,
// also for no rows. Which replica of an expert serves a row makes no difference to the bits: in a
// tensor-parallel group, whose ranks have the rows of one pass, all rows' choices are split so that
// the most loaded rank is as light as can be (SplitTokens); else each row goes by its hash.
//
// Begin: gate, rows on their way, shared experts. Run: this rank's experts on the rows that came,
// outputs on their way. End: the sum into a.hidden.
absl::Status BeginMoeInGroup(const PassContext& pass, const MoeWeights& w,
                             const ExpertTables& tables, int32_t layer, ExpertExchange& exchange);
absl::Status RunMoeInGroup(const PassContext& pass, const ExpertTables& tables, int32_t layer,
                           ExpertExchange& exchange);
absl::Status EndMoeInGroup(const PassContext& pass, ExpertExchange& exchange);

}  // namespace baton::model

#endif  // BATON_MODEL_MOE_H_
