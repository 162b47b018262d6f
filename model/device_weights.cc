#include "model/device_weights.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

using kernels::TensorView;

// A large tensor goes in pieces, so that progress is seen.
constexpr int64_t kPieceBytes = int64_t{64} << 20;

void Append(kernels::Weight& weight, std::vector<TensorView*>* views) {
  views->push_back(&weight.w);
  views->push_back(&weight.scales);
}

void Append(MlpWeights& mlp, std::vector<TensorView*>* views) {
  Append(mlp.gate, views);
  Append(mlp.up, views);
  Append(mlp.down, views);
}

// Every view that is there, in the order of the forward pass. Matrices of a layer's experts lie
// behind each other, at equal distances, and their scales behind them: kernels may then take them
// for layers of one tensor.
std::vector<TensorView*> AllViewsOf(Weights& weights) {
  std::vector<TensorView*> views = {&weights.embed};
  for (LayerWeights& layer : weights.layers) {
    AttentionWeights& a = layer.attention;
    views.insert(views.end(), {&layer.input_norm, &layer.post_attn_norm, &a.q_a_norm, &a.kv_a_norm,
                               &layer.moe.gate, &layer.moe.bias});
    for (kernels::Weight* weight : {&a.q, &a.q_a, &a.q_b, &a.kv_a, &a.kv_b, &a.o}) {
      Append(*weight, &views);
    }
    Append(layer.mlp, &views);
    Append(layer.moe.shared, &views);
    for (auto* experts : {&layer.moe.expert_gate, &layer.moe.expert_up, &layer.moe.expert_down}) {
      for (kernels::Weight& weight : *experts) views.push_back(&weight.w);
      for (kernels::Weight& weight : *experts) views.push_back(&weight.scales);
    }
  }
  views.push_back(&weights.norm);
  Append(weights.head, &views);
  std::erase_if(views, [](const TensorView* view) { return view->absent(); });
  return views;
}

}  // namespace

int64_t DeviceRoomOf(const TensorView& view) {
  return (static_cast<int64_t>(view.bytes()) + kRoomUnit - 1) / kRoomUnit * kRoomUnit;
}

void UploadMeter::Add(int64_t bytes) {
  done_ += bytes;
  if (!progress_ || (done_ != total_ && done_ - told_ < total_ / 100)) return;
  progress_(done_, total_);
  told_ = done_;
}

int64_t DeviceWeights::CopiedBytes(const Weights& weights) {
  Weights views = ViewsOf(weights);
  int64_t bytes = 0;
  for (const TensorView* view : AllViewsOf(views)) bytes += static_cast<int64_t>(view->bytes());
  return bytes;
}

int64_t DeviceWeights::RoomBytes(const Weights& weights) {
  Weights views = ViewsOf(weights);
  int64_t room = 0;
  for (const TensorView* view : AllViewsOf(views)) room += DeviceRoomOf(*view);
  return room;
}

absl::StatusOr<std::unique_ptr<const DeviceWeights>> DeviceWeights::Upload(kernels::Device& device,
                                                                           const Weights& weights,
                                                                           UploadMeter& meter) {
  std::unique_ptr<DeviceWeights> out(new DeviceWeights);
  out->weights_ = ViewsOf(weights);
  BATON_ASSIGN_OR_RETURN(out->buffer_, device.Allocate(static_cast<size_t>(RoomBytes(weights))));
  uint8_t* to = static_cast<uint8_t*>(out->buffer_.data());
  for (TensorView* view : AllViewsOf(out->weights_)) {
    const uint8_t* from = static_cast<const uint8_t*>(view->data);
    const int64_t bytes = static_cast<int64_t>(view->bytes());
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
      const int64_t piece = std::min(kPieceBytes, bytes - at);
      BATON_RETURN_IF_ERROR(device.CopyToDevice(to + at, from + at, static_cast<size_t>(piece)));
      meter.Add(piece);
    }
    view->data = to;
    to += DeviceRoomOf(*view);
  }
  return out;
}

}  // namespace baton::model
