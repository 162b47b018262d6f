// Passes of a group on GPUs that wait for nothing before their end, and what such a group counts.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/decoder.h"
#include "model/pair_capacity.h"

namespace baton::model {

using kernels::DType;
using kernels::TensorView;

absl::Status Decoder::AllocateCounts() {
  const ModelConfig& config = model_.config;
  const int64_t layers = config.layers - config.dense_layers, ranks = options_.group.ranks();
  const int64_t choices = layers * config.routed_experts;
  const std::vector<int32_t> zeros(static_cast<size_t>(2 * choices + ranks + 1), 0);
  const size_t bytes = zeros.size() * sizeof(int32_t);
  BATON_ASSIGN_OR_RETURN(counts_, device_.Allocate(bytes));
  BATON_RETURN_IF_ERROR(device_.CopyToDevice(counts_.data(), zeros.data(), bytes));
  int32_t* const at = static_cast<int32_t*>(counts_.data());
  choices_ = TensorView::Contiguous(at, DType::kI32, {layers, config.routed_experts});
  choices_before_ =
      TensorView::Contiguous(at + choices, DType::kI32, {layers, config.routed_experts});
  most_pairs_ = TensorView::Contiguous(at + 2 * choices, DType::kI32, {ranks + 1});
  return absl::OkStatus();
}

absl::Status Decoder::CheckGroup() const {
  const RankGroup& group = options_.group;
  if (group.solo() || group.ranks() == 1 || device_.host_memory()) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(group.collectives->health());
  if (group.collectives->ForDevice() != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the ranks of this group exchange the memory of their hosts alone, and the model lies in "
      "that of GPUs; form the group over NCCL, or set the backend to cpu");
}

void Decoder::TakeChoices(std::span<int32_t> counts) {
  BATON_CHECK_EQ(counts.size(), static_cast<size_t>(choices_.elements()));
  std::vector<int32_t> taken(counts.size());
  // A device that cannot be read fails the next pass; its choices count for nothing.
  if (!device_.CopyToHost(taken.data(), choices_.data, choices_.bytes()).ok()) return;
  for (size_t i = 0; i < counts.size(); ++i) counts[i] += std::exchange(taken[i], 0);
  (void)device_.CopyToDevice(choices_.data, taken.data(), choices_.bytes());
}

// Everybody learns how much room the pass would have needed.
absl::Status Decoder::GatherMostPairs() {
  const RankGroup& group = options_.group;
  if (group.ranks() == 1) return absl::OkStatus();
  const std::span<std::byte> counts(static_cast<std::byte*>(most_pairs_.data), most_pairs_.bytes());
  const size_t all = static_cast<size_t>(group.ranks()) * sizeof(int32_t);
  return group.data().AllGather(counts.subspan(all), counts.first(all), group.timeout);
}

absl::Status Decoder::CopyChoices(const TensorView& from, const TensorView& to) {
  return kernels::CopyRows(device_, {.x = from, .index = {}, .out = to});
}

// The room for outputs doubles with each attempt that finds too little, until all pairs of a rank
// may go to one other.
absl::Status Decoder::RunInRoom(const scheduler::BatchPlan& plan, int32_t parts,
                                int32_t most_rows) {
  constexpr int32_t kMaxAttempts = 16;
  const RankGroup& group = options_.group;
  const int64_t ranks = group.ranks();
  if (group.collectives->generation() != generation_) {
    generation_ = group.collectives->generation();
    pair_capacity_ = PairCapacity(model_.config.experts_per_token, group.ranks());
    if (recorded_ != nullptr) recorded_->Forget();  // other ranks may be present
  }
  const int32_t rows = PairCapacity::RowsFor(most_rows);
  std::vector<int32_t> most_pairs(static_cast<size_t>(ranks + 1));
  const size_t bytes = most_pairs.size() * sizeof(int32_t);
  for (int32_t attempt = 0; attempt < kMaxAttempts; ++attempt) {
    std::fill(most_pairs.begin(), most_pairs.end(), 0);
    BATON_RETURN_IF_ERROR(device_.CopyToDevice(most_pairs_.data, most_pairs.data(), bytes));
    BATON_RETURN_IF_ERROR(CopyChoices(choices_, choices_before_));
    room_ = {.rows = rows,
             .pairs = pair_capacity_.PairsFor(rows),
             .most_pairs = most_pairs_.Slice(0, ranks, ranks + 1)};
    for (const auto& exchange : exchanges_) {
      if (exchange != nullptr) exchange->UseRoom(room_);
    }
    transport::DeviceCalls* const calls = group.collectives->ForDevice();
    if (calls != nullptr) calls->TrustSizes(true);
    const absl::Status status = RunPlan(plan, nullptr, parts);
    if (calls != nullptr) calls->TrustSizes(false);
    BATON_RETURN_IF_ERROR(status);
    BATON_RETURN_IF_ERROR(device_.CopyToHost(most_pairs.data(), most_pairs_.data, bytes));
    const int32_t most = *std::max_element(most_pairs.begin(), most_pairs.end());
    if (pair_capacity_.Fits(rows, most)) return absl::OkStatus();
    ++passes_run_again_;
    BATON_RETURN_IF_ERROR(CopyChoices(choices_before_, choices_));
  }
  return absl::InternalError(absl::StrCat("a pass of ", most_rows, " rows found no room after ",
                                          kMaxAttempts, " attempts"));
}

}  // namespace baton::model
