#include "model/rank_weights.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/expert_tables.h"
#include "model/rank_share.h"

namespace baton::model {
namespace {

using scheduler::ExpertPlacement;

// What a rank uploads, and the places that it needs for experts.
struct UploadPlan {
  Weights share;                                 // less the experts that go to places
  std::shared_ptr<const ExpertPlacement> first;  // null: no places, since nobody shares the experts
  int64_t expert_bytes = 0;                      // of the first ones
  int32_t places = 0;
};

bool SharesExperts(const RankGroup& group) { return !group.solo() || group.planned_ranks > 1; }

// Calls body(layer, expert) for each of a rank's experts, once.
template <typename Body>
absl::Status ForExpertsOf(const ExpertPlacement& placement, int32_t rank, const Body& body) {
  const size_t slots = static_cast<size_t>(placement.slots_per_rank());
  for (int32_t layer = 0; layer < placement.layers(); ++layer) {
    const auto mine = placement.Slots(layer).subspan(static_cast<size_t>(rank) * slots, slots);
    for (const int32_t expert : std::set<int32_t>(mine.begin(), mine.end())) {
      BATON_RETURN_IF_ERROR(body(layer, expert));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<UploadPlan> PlanUpload(const LoadedModel& model, const RankGroup& group,
                                      int32_t rank, int32_t spare_experts) {
  const ModelConfig& config = model.config;
  UploadPlan plan;
  plan.share = ShareOfRank(config, model.weights, group.split, group.ranks(), rank);
  if (!SharesExperts(group)) return plan;
  for (LayerWeights& layer : plan.share.layers) {
    for (auto* experts : {&layer.moe.expert_gate, &layer.moe.expert_up, &layer.moe.expert_down}) {
      experts->clear();
    }
  }
  BATON_ASSIGN_OR_RETURN(plan.first, FirstPlacement(config, group));
  const int32_t layers = plan.first->layers();
  plan.places = std::min(layers * plan.first->slots_per_rank() + spare_experts,
                         layers * config.routed_experts);
  BATON_RETURN_IF_ERROR(ForExpertsOf(*plan.first, rank, [&](int32_t layer, int32_t expert) {
    plan.expert_bytes += BytesOf(ExpertOf(config, model.weights, layer, expert));
    return absl::OkStatus();
  }));
  return plan;
}

int64_t RoomOf(const LoadedModel& model, const UploadPlan& plan) {
  const int64_t place_bytes =
      plan.places > 0 ? ExpertPlaces::PlaceBytes(model.config, model.weights) : 0;
  return DeviceWeights::RoomBytes(plan.share) + plan.places * place_bytes;
}

absl::Status NoRoom(const absl::Status& status, int64_t bytes, const RankGroup& group) {
  if (!absl::IsResourceExhausted(status)) return status;
  return absl::ResourceExhaustedError(
      absl::StrCat("the weights of rank ", group.rank(), " of ", group.ranks(), " take ", bytes,
                   " bytes: ", status.message(), "; use more ranks or a device with more memory"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ExpertPlacement>> FirstPlacement(const ModelConfig& config,
                                                                      const RankGroup& group) {
  if (group.placement != nullptr) return group.placement;
  const int32_t slots =
      scheduler::SlotsPerRank(config.routed_experts, group.redundant_experts, group.ranks());
  BATON_ASSIGN_OR_RETURN(ExpertPlacement in_order,
                         ExpertPlacement::InOrder(TopologyOf(config, group.ranks(), slots)));
  return std::make_shared<const ExpertPlacement>(std::move(in_order));
}

absl::StatusOr<int64_t> RankWeights::DeviceBytes(const LoadedModel& model, const RankGroup& group,
                                                 int32_t rank, int32_t spare_experts) {
  BATON_ASSIGN_OR_RETURN(const UploadPlan plan, PlanUpload(model, group, rank, spare_experts));
  return RoomOf(model, plan);
}

absl::StatusOr<std::unique_ptr<RankWeights>> RankWeights::Create(kernels::Device& device,
                                                                 const LoadedModel& model,
                                                                 const RankGroup& group,
                                                                 const Options& options) {
  std::unique_ptr<RankWeights> made(new RankWeights(model));
  if (!options.uploads) {
    made->share_ =
        ShareOfRank(model.config, model.weights, group.split, group.ranks(), group.rank());
    return made;
  }
  BATON_ASSIGN_OR_RETURN(const UploadPlan plan,
                         PlanUpload(model, group, group.rank(), options.spare_experts));
  UploadMeter meter(options.progress, DeviceWeights::CopiedBytes(plan.share) + plan.expert_bytes);
  // Room for all first: to run out of it is a mistake that should show at once.
  if (plan.places > 0) {
    auto places = ExpertPlaces::Create(device, model.config, model.weights, plan.places);
    if (!places.ok()) return NoRoom(places.status(), RoomOf(model, plan), group);
    made->places_ = *std::move(places);
  }
  auto uploaded = DeviceWeights::Upload(device, plan.share, meter);
  if (!uploaded.ok()) return NoRoom(uploaded.status(), RoomOf(model, plan), group);
  made->uploaded_ = *std::move(uploaded);
  if (made->places_ == nullptr) return made;
  BATON_RETURN_IF_ERROR(made->Bring(device, *plan.first, group.rank(), [&meter](int64_t bytes) {
    meter.Add(bytes);
    return true;
  }));
  return made;
}

absl::Status RankWeights::Bring(kernels::Device& device, const ExpertPlacement& placement,
                                int32_t rank, absl::FunctionRef<bool(int64_t bytes)> may_go_on) {
  if (places_ == nullptr) return absl::OkStatus();
  places_->ForgetCopies();
  return ForExpertsOf(placement, rank, [&](int32_t layer, int32_t expert) {
    return places_->Copy(device, layer, expert, may_go_on);
  });
}

absl::StatusOr<ExpertWeights> RankWeights::Expert(int32_t moe_layer, int32_t expert,
                                                  ExpertPlaces::Lease& lease) {
  if (places_ != nullptr) return places_->Hold(moe_layer, expert, lease);
  return ExpertOf(model_.config, weights(), moe_layer, expert);
}

ExpertWeights RankWeights::UnreadExpert(int32_t moe_layer) const {
  if (places_ != nullptr) return places_->Unread(moe_layer);
  return ExpertOf(model_.config, weights(), moe_layer, 0);
}

int64_t RankWeights::device_bytes() const {
  return (uploaded_ ? uploaded_->bytes() : 0) + (places_ ? places_->bytes() : 0);
}

}  // namespace baton::model
