#include "model/expert_places.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/device_weights.h"
#include "model/expert_prefetch.h"

namespace baton::model {
namespace {

using kernels::TensorView;

// What is copied at once: a millisecond of a link of 1 GB/s, so that a limit is kept evenly.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// A place is rounded up to whole rows where that is little: no more than this, or than such a part.
constexpr int64_t kLittleBytes = int64_t{4} << 10;
constexpr int64_t kLittlePart = 16;

int64_t RowBytes(const TensorView& matrix) {
  return matrix.dim(1) * static_cast<int64_t>(kernels::DTypeBytes(matrix.dtype));
}

std::array<TensorView*, 6> ViewsOf(ExpertWeights& expert) {
  return {&expert.gate.w,    &expert.gate.scales, &expert.up.w,
          &expert.up.scales, &expert.down.w,      &expert.down.scales};
}

}  // namespace

ExpertWeights ExpertOf(const ModelConfig& config, const Weights& weights, int32_t moe_layer,
                       int32_t expert) {
  const MoeWeights& moe = weights.layers[static_cast<size_t>(config.dense_layers + moe_layer)].moe;
  const size_t e = static_cast<size_t>(expert);
  return {moe.expert_gate[e], moe.expert_up[e], moe.expert_down[e]};
}

int64_t BytesOf(const ExpertWeights& expert) {
  return WeightBytes(expert.gate) + WeightBytes(expert.up) + WeightBytes(expert.down);
}

int64_t ExpertPlaces::PlaceBytes(const ModelConfig& config, const Weights& weights) {
  int64_t most = 0, unit = kRoomUnit;
  for (int32_t layer = 0; layer < config.layers - config.dense_layers; ++layer) {
    for (int32_t e = 0; e < config.routed_experts; ++e) {
      ExpertWeights expert = ExpertOf(config, weights, layer, e);
      int64_t bytes = 0;
      for (const TensorView* view : ViewsOf(expert)) bytes += DeviceRoomOf(*view);
      most = std::max(most, bytes);
      for (const kernels::Weight* weight : {&expert.gate, &expert.up, &expert.down}) {
        // Once it is too much, another row's bytes make it no less; and it must not overflow.
        if (unit <= most) unit = std::lcm(unit, RowBytes(weight->w));
      }
    }
  }
  const bool is_little = unit <= std::max(kLittleBytes, most / kLittlePart);
  return is_little ? (most + unit - 1) / unit * unit : most;
}

absl::StatusOr<std::unique_ptr<ExpertPlaces>> ExpertPlaces::Create(kernels::Device& device,
                                                                   const ModelConfig& config,
                                                                   const Weights& weights,
                                                                   int32_t places) {
  std::unique_ptr<ExpertPlaces> made(new ExpertPlaces(device, config, weights));
  made->place_bytes_ = PlaceBytes(config, weights);
  made->places_.resize(static_cast<size_t>(places));
  BATON_ASSIGN_OR_RETURN(made->buffer_,
                         device.Allocate(static_cast<size_t>(made->place_bytes_ * places)));
  return made;
}

// --- who keeps what -------------------------------------------------------------------------

ExpertPlaces::Lease& ExpertPlaces::Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  owner_ = std::exchange(other.owner_, nullptr);
  places_ = std::exchange(other.places_, {});
  return *this;
}

void ExpertPlaces::Lease::Release() {
  if (owner_ == nullptr) return;
  ExpertPlaces& owner = *std::exchange(owner_, nullptr);
  // Without a fence the device is lost, and nothing will be read or written there any more.
  absl::StatusOr<std::unique_ptr<kernels::Fence>> marked = owner.device_.Mark();
  const std::shared_ptr<kernels::Fence> fence = marked.ok() ? *std::move(marked) : nullptr;
  std::lock_guard<std::mutex> lock(owner.mutex_);
  for (const size_t place : std::exchange(places_, {})) {
    owner.places_[place].last_read = fence;
    owner.Drop(owner.places_[place]);
  }
}

void ExpertPlaces::Drop(Place& place) {
  BATON_CHECK(place.keepers > 0);
  if (--place.keepers == 0) place.kept_until = ++clock_;
}

absl::StatusOr<ExpertWeights> ExpertPlaces::Hold(int32_t moe_layer, int32_t expert, Lease& lease) {
  BATON_CHECK(lease.owner_ == nullptr || lease.owner_ == this);
  const Name name(moe_layer, expert);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = where_.find(name);
  if (it == where_.end() || !places_[it->second].complete) {
    return absl::NotFoundError(absl::StrCat("expert ", expert, " of MoE layer ", moe_layer,
                                            " is not in this device's memory"));
  }
  ++places_[it->second].keepers;
  lease.owner_ = this;
  lease.places_.push_back(it->second);
  return At(it->second, name);
}

ExpertWeights ExpertPlaces::Unread(int32_t moe_layer) const { return At(0, {moe_layer, 0}); }

ExpertWeights ExpertPlaces::At(size_t place, const Name& name) const {
  ExpertWeights expert = ExpertOf(config_, weights_, name.first, name.second);
  uint8_t* to = static_cast<uint8_t*>(buffer_.data()) + static_cast<int64_t>(place) * place_bytes_;
  for (TensorView* view : ViewsOf(expert)) {
    if (view->absent()) continue;
    view->data = to;
    to += DeviceRoomOf(*view);
  }
  return expert;
}

// --- copies ---------------------------------------------------------------------------------

// A place for an expert that is in none, or the one that it is in; kept by one more.
absl::StatusOr<ExpertPlaces::Taken> ExpertPlaces::TakeFor(const Name& name) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = where_.find(name);
  if (it != where_.end()) {
    BATON_CHECK(places_[it->second].complete);
    ++places_[it->second].keepers;
    return Taken{it->second, true, nullptr};
  }
  const auto oldest =
      std::min_element(places_.begin(), places_.end(), [](const Place& a, const Place& b) {
        return std::pair(a.keepers > 0, a.kept_until) < std::pair(b.keepers > 0, b.kept_until);
      });
  if (oldest == places_.end() || oldest->keepers > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", places_.size(),
                     " places for experts in this rank's device are in use, none is left "
                     "for expert ",
                     name.second, " of MoE layer ", name.first,
                     "; set decode.rebalance.max_staged to the same number on all ranks"));
  }
  where_.erase(oldest->holds);
  const size_t place = static_cast<size_t>(oldest - places_.begin());
  Taken taken{place, false, std::move(oldest->last_read)};
  *oldest = {.holds = name, .keepers = 1};
  where_[name] = place;
  return taken;
}

absl::Status ExpertPlaces::Copy(kernels::Device& copier, int32_t moe_layer, int32_t expert,
                                absl::FunctionRef<bool(int64_t bytes)> may_go_on) {
  const Name name(moe_layer, expert);
  BATON_ASSIGN_OR_RETURN(const Taken taken, TakeFor(name));
  absl::Status status;
  if (taken.last_read != nullptr) status = taken.last_read->Wait();
  if (status.ok() && !taken.complete) status = Fill(copier, taken.place, name, may_go_on);
  std::lock_guard<std::mutex> lock(mutex_);
  Place& place = places_[taken.place];
  place.complete = status.ok();
  if (status.ok()) {
    copies_.push_back(taken.place);
  } else {
    where_.erase(name);
    place = {};
  }
  return status;
}

absl::Status ExpertPlaces::Fill(kernels::Device& copier, size_t place, const Name& name,
                                absl::FunctionRef<bool(int64_t bytes)> may_go_on) {
  ExpertWeights from = ExpertOf(config_, weights_, name.first, name.second);
  ExpertWeights to = At(place, name);
  const std::array<TensorView*, 6> sources = ViewsOf(from), targets = ViewsOf(to);
  for (size_t i = 0; i < sources.size(); ++i) {
    const int64_t bytes = static_cast<int64_t>(sources[i]->bytes());
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
      const int64_t piece = std::min(kPieceBytes, bytes - at);
      if (!may_go_on(piece)) return absl::CancelledError("nobody waits for this copy any more");
      const char* const data = sources[i]->as<const char>() + at;
      // The driver, whose locks passes need too, must not wait for the disk.
      BATON_RETURN_IF_ERROR(ReadIn(data, piece));
      BATON_RETURN_IF_ERROR(
          copier.CopyToDevice(targets[i]->as<char>() + at, data, static_cast<size_t>(piece)));
    }
  }
  return absl::OkStatus();
}

void ExpertPlaces::ForgetCopies() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const size_t place : std::exchange(copies_, {})) Drop(places_[place]);
}

}  // namespace baton::model
