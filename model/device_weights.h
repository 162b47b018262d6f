#ifndef BATON_MODEL_DEVICE_WEIGHTS_H_
#define BATON_MODEL_DEVICE_WEIGHTS_H_

// A model's weights in the memory of a device that cannot read the checkpoint's mapping: copied
// once, in the checkpoint's own layout. Immutable; the Device must outlive it.

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/weights.h"

namespace baton::model {

// What a view takes in a device's memory beside others, a multiple of kRoomUnit.
inline constexpr int64_t kRoomUnit = 256;
int64_t DeviceRoomOf(const kernels::TensorView& view);

// Tells how far the copying is, a few hundred times at most.
class UploadMeter {
 public:
  // Bytes that have been copied, of how many.
  using Progress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

  // `progress` may be empty.
  UploadMeter(const Progress& progress, int64_t total_bytes)
      : progress_(progress), total_(total_bytes) {}
  void Add(int64_t bytes);

 private:
  const Progress progress_;
  const int64_t total_;
  int64_t done_ = 0;
  int64_t told_ = 0;
};

class DeviceWeights {
 public:
  // Bytes that are copied, and what they take in the device's memory.
  static int64_t CopiedBytes(const Weights& weights);
  static int64_t RoomBytes(const Weights& weights);

  // Copies every view that is there. RESOURCE_EXHAUSTED when the device has no room.
  static absl::StatusOr<std::unique_ptr<const DeviceWeights>> Upload(kernels::Device& device,
                                                                     const Weights& weights,
                                                                     UploadMeter& meter);

  // The same weights, as views into the device's memory.
  const Weights& weights() const { return weights_; }
  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }

 private:
  DeviceWeights() = default;

  kernels::DeviceBuffer buffer_;
  Weights weights_;
};

}  // namespace baton::model

#endif  // BATON_MODEL_DEVICE_WEIGHTS_H_
