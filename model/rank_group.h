#ifndef BATON_MODEL_RANK_GROUP_H_
#define BATON_MODEL_RANK_GROUP_H_

// How the ranks of a worker share a forward pass. Every rank has a Decoder of its own; what one
// needs of the others travels through the group's Collectives, in calls that all ranks make in the
// same order.
//
// Rows and heads are split, sums never are: each output element of every matrix product, each head
// of each row and each sum over experts is computed by one rank, in the order in which a single
// rank would compute it. So a pass has the same bits for every number of ranks and every placement
// of experts.

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "base/clock.h"
#include "transport/collectives.h"

namespace baton::scheduler {
class ExpertPlacement;
}

namespace baton::model {

enum class Split : uint8_t {
  // Prefill: all ranks run the same plan. Rank r owns the r-th of world_size equal runs of rows:
  // it has their residual stream and computes for them all that works row by row. Attention is
  // split by heads: a rank has some heads of all rows. Latents are the same on all ranks.
  kTensor,
  // Decode: each rank runs a plan of its own, which may be empty, with all heads.
  kExpert,
};

// How a row travels to the experts of a group.
enum class Dispatch : uint8_t {
  kActivations,  // as it is
  // Rounded to E4M3 with one scale for each 128 values (kernels::QuantizeFp8), on this rank's own
  // rows too: half the bytes of BF16, and other bits than kActivations, but the same ones for every
  // number of ranks.
  kFp8,
};
const char* DispatchName(Dispatch dispatch);  // "activations", "fp8"

// Both share the experts: a layer's experts lie in slots spread over the ranks (expert_tables.h),
// and each row travels to the ranks of the experts it chose and back.
struct RankGroup {
  transport::Collectives* collectives = nullptr;  // null: one rank that has everything
  Split split = Split::kTensor;
  Duration timeout = transport::kDefaultCollectiveTimeout;  // of one call
  Dispatch dispatch = Dispatch::kActivations;               // the same on all ranks
  // Split::kExpert: a pass in which some rank has this many rows or more goes through the layers in
  // two parts, of which one computes while the other's rows travel. 0: never. The same on all
  // ranks; no bits depend on it.
  int32_t overlap_rows = 0;
  // Slots of a layer beyond one for each expert, over all ranks; rounded up to whole ranks.
  int32_t redundant_experts = 0;
  // Where the experts lie until they are installed elsewhere, of the group's shape; null: in order.
  // Ranks that hold their experts in a device's memory begin with those of it.
  std::shared_ptr<const scheduler::ExpertPlacement> placement;
  // Without collectives, for memory plans alone: the ranks of the group that is to be formed. The
  // plan is that of its last rank, which no other one exceeds.
  int32_t planned_ranks = 1;
  // Whoever calls the runner has all ranks step together and see the experts in the same places.
  // Otherwise the runner sees to it before each pass.
  bool stepped = false;

  bool solo() const { return collectives == nullptr; }
  // The calls for buffers in the memory of the rank's device. Not solo.
  transport::DataCalls& data() const {
    transport::DeviceCalls* const device = collectives->ForDevice();
    if (device != nullptr) return *device;
    return *collectives;
  }
  // Before the host waits for the device, since what the device does may wait for other ranks.
  absl::Status Settle() const {
    transport::DeviceCalls* const device = solo() ? nullptr : collectives->ForDevice();
    return device == nullptr ? absl::OkStatus() : device->Settle(timeout);
  }
  // Rows and heads are spread over several ranks.
  bool tensor() const { return split == Split::kTensor && ranks() > 1; }
  int32_t ranks() const { return solo() ? planned_ranks : collectives->world_size(); }
  int32_t rank() const { return solo() ? planned_ranks - 1 : collectives->rank(); }
};

// A rank's run of `count` things (rows of a pass): [begin, end). All runs but the last ones are
// `stride` long, the last ones are shorter or empty.
struct Share {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t stride = 0;
  int64_t size() const { return end - begin; }
};
inline Share ShareOf(int64_t count, int32_t rank, int32_t ranks) {
  const int64_t stride = (count + ranks - 1) / ranks;
  const int64_t begin = stride * rank < count ? stride * rank : count;
  return {begin, begin + stride < count ? begin + stride : count, stride};
}

// A rank's heads, as evenly as whole heads can be split: [begin, end).
inline Share HeadsOf(int64_t heads, int32_t rank, int32_t ranks) {
  return {heads * rank / ranks, heads * (rank + 1) / ranks, 0};
}

}  // namespace baton::model

#endif  // BATON_MODEL_RANK_GROUP_H_
