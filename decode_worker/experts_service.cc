#include "decode_worker/experts_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "proto/baton/v1/worker.grpc.pb.h"
#include "scheduler/expert_load.h"

namespace baton::decode_worker {
namespace {

void Fill(const ExpertsView& view, Tick now, v1::ExpertsReply* reply) {
  const scheduler::ExpertPlacement& placement = *view.active.placement;
  reply->set_rank(view.rank);
  reply->set_leader(view.leader);
  reply->set_version(view.active.version);
  reply->set_placement_age_ns((now - view.placed_at).nanos());
  reply->set_slots_per_rank(placement.slots_per_rank());
  for (size_t r = 0; r < view.present.size(); ++r) {
    reply->add_present(view.present[r]);
    reply->add_live(view.active.live[r]);
  }
  reply->set_uncovered(view.uncovered);
  reply->set_on_one_rank(view.on_one_rank);
  reply->set_balancedness(view.balancedness);
  reply->set_last_rebalance(view.last_rebalance);
  std::vector<double> balancedness(static_cast<size_t>(placement.layers()), 1.0);
  if (view.loads != nullptr) {
    balancedness = scheduler::LayerBalancedness(placement, *view.loads, view.active.live);
  }
  const size_t experts = static_cast<size_t>(placement.experts());
  for (int32_t i = 0; i < placement.layers(); ++i) {
    v1::ExpertLayer* const layer = reply->add_layers();
    layer->set_balancedness(balancedness[static_cast<size_t>(i)]);
    for (const int32_t expert : placement.Slots(i)) layer->add_slot_experts(expert);
    if (view.loads == nullptr) continue;
    const double* const loads = view.loads->data() + static_cast<size_t>(i) * experts;
    layer->mutable_loads()->Add(loads, loads + experts);
  }
}

class ExpertsService final : public v1::Experts::CallbackService {
 public:
  ExpertsService(ExpertGroup& group, Clock& clock) : group_(group), clock_(clock) {}

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::ExpertsRequest* request,
                                     v1::ExpertsReply* reply) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const std::shared_ptr<const ExpertsView> view = group_.View();
    if (view == nullptr) {
      reactor->Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                   "the group's ranks have not found each other yet; try again"));
      return reactor;
    }
    if (request->rebalance()) group_.RequestRebalance();
    Fill(*view, clock_.Now(), reply);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  ExpertGroup& group_;
  Clock& clock_;
};

// Live replicas of the experts that have the fewest and the most.
std::pair<int32_t, int32_t> ReplicaBounds(const scheduler::ActiveExperts& active) {
  const scheduler::ExpertPlacement& placement = *active.placement;
  int32_t fewest = placement.slots(), most = 0;
  for (int32_t layer = 0; layer < placement.layers(); ++layer) {
    for (int32_t expert = 0; expert < placement.experts(); ++expert) {
      int32_t live = 0;
      for (const int32_t slot : placement.Replicas(layer, expert)) {
        live += active.live[static_cast<size_t>(placement.rank_of(slot))];
      }
      fewest = std::min(fewest, live);
      most = std::max(most, live);
    }
  }
  return {fewest, most};
}

// Over the mean of the live ranks: of the least and the most loaded one. 1 without load.
std::pair<double, double> RankLoadBounds(const ExpertsView& view) {
  const scheduler::ExpertPlacement& placement = *view.active.placement;
  const size_t ranks = static_cast<size_t>(placement.ranks());
  std::vector<double> sums(ranks);
  const std::vector<double> loads = scheduler::RankLoads(placement, *view.loads, view.active.live);
  for (size_t i = 0; i < loads.size(); ++i) sums[i % ranks] += loads[i];
  double least = std::numeric_limits<double>::infinity(), most = 0, all = 0, live = 0;
  for (size_t r = 0; r < ranks; ++r) {
    if (!view.active.live[r]) continue;
    least = std::min(least, sums[r]);
    most = std::max(most, sums[r]);
    all += sums[r];
    live += 1;
  }
  if (all == 0) return {1, 1};
  return {least * live / all, most * live / all};
}

// The largest share of a layer's load that one expert has. 0 without load.
double BusiestShare(const ExpertsView& view) {
  const size_t experts = static_cast<size_t>(view.active.placement->experts());
  double largest = 0;
  for (size_t begin = 0; begin < view.loads->size(); begin += experts) {
    const std::span<const double> layer = std::span(*view.loads).subspan(begin, experts);
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    if (sum > 0) largest = std::max(largest, *std::max_element(layer.begin(), layer.end()) / sum);
  }
  return largest;
}

}  // namespace

void RecordExperts(ExpertGroup& group, const ExpertMetrics& metrics, Clock& clock) {
  const std::shared_ptr<const ExpertsView> view = group.View();
  if (view == nullptr) return;
  metrics.placement_age_seconds.Set((clock.Now() - view->placed_at).seconds());
  const std::optional<ExpertsReport> report = group.TakeReport();
  if (!report.has_value()) return;
  const std::vector<bool>& live = view->active.live;
  metrics.balancedness.Set(view->balancedness);
  if (view->loads != nullptr) {
    const auto [least, most] = RankLoadBounds(*view);
    metrics.rank_load_least.Set(least);
    metrics.rank_load_most.Set(most);
    metrics.busiest_expert_share.Set(BusiestShare(*view));
  }
  metrics.uncovered.Set(view->uncovered);
  metrics.on_one_rank.Set(view->on_one_rank);
  metrics.masked_ranks.Set(static_cast<double>(std::count(live.begin(), live.end(), false)));
  const auto [fewest, most] = ReplicaBounds(view->active);
  metrics.replicas_fewest.Set(fewest);
  metrics.replicas_most.Set(most);
  metrics.placement_version.Set(static_cast<double>(view->active.version));
  metrics.copies_total.Add(report->copies);
  for (size_t i = 0; i < report->ended.size(); ++i) {
    metrics.rebalances_total[static_cast<RebalanceOutcome>(i)].Add(report->ended[i]);
  }
}

std::unique_ptr<grpc::Service> MakeExpertsService(ExpertGroup& group, Clock& clock) {
  return std::make_unique<ExpertsService>(group, clock);
}

}  // namespace baton::decode_worker
