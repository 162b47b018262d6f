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

class DeviceWeights {
 public:
  // Bytes that have been copied, of how many; called a few hundred times at most.
  using Progress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

  // RESOURCE_EXHAUSTED, with the bytes that are wanted, when the device has no room.
  static absl::StatusOr<std::unique_ptr<const DeviceWeights>> Upload(kernels::Device& device,
                                                                     const Weights& weights,
                                                                     const Progress& progress);

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
