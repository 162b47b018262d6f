#ifndef BATON_MODEL_EXPERT_PLACES_H_
#define BATON_MODEL_EXPERT_PLACES_H_

// The routed experts that a rank has in the memory of its device: a fixed number of places, each
// for the weights of one expert of any layer. Tables of a pass keep the experts of the rank's slots
// where they are (Lease); beside them, copies bring others from the mapped checkpoint for a
// placement to come.
//
// A place is known by the expert that it holds, never by a slot: a table that asks for an expert
// gets its weights or an error, whatever happened to copies, placements and ranks in the meantime.
// A place that nobody keeps stays what it is until a copy needs it, so an expert that comes back
// soon costs nothing. It is written again only behind the passes that may still read it.
//
// Copies: one thread at a time. Leases: the thread that calls the Device's ops. Both at once.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"

namespace baton::model {

// Of one expert.
struct ExpertWeights {
  kernels::Weight gate;
  kernels::Weight up;
  kernels::Weight down;
};

// MoE layers are counted without the dense ones, as everywhere with experts.
ExpertWeights ExpertOf(const ModelConfig& config, const Weights& weights, int32_t moe_layer,
                       int32_t expert);
// Of the values and the scales.
int64_t BytesOf(const ExpertWeights& expert);

class ExpertPlaces {
 public:
  // Keeps experts where they are until it goes, on the thread that calls the Device's ops; the
  // places outlive it.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept { *this = std::move(other); }
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { Release(); }

   private:
    friend class ExpertPlaces;
    void Release();

    ExpertPlaces* owner_ = nullptr;
    std::vector<size_t> places_;
  };

  // Bytes of a place: room for the largest expert, each tensor aligned, and up to whole rows of
  // each of its matrices where that costs little. The experts of a table are then as far from each
  // other as some number of rows, which lets kernels take them for layers of one tensor.
  static int64_t PlaceBytes(const ModelConfig& config, const Weights& weights);
  // `weights` (where copies come from) and the Device outlive it. RESOURCE_EXHAUSTED when the
  // device has no room.
  static absl::StatusOr<std::unique_ptr<ExpertPlaces>> Create(kernels::Device& device,
                                                              const ModelConfig& config,
                                                              const Weights& weights,
                                                              int32_t places);

  // An expert's weights, kept as long as `lease`. NOT_FOUND when they are in no place.
  absl::StatusOr<ExpertWeights> Hold(int32_t moe_layer, int32_t expert, Lease& lease);
  // Weights of the shape of a layer's experts, with any values: for ops with rows for none.
  ExpertWeights Unread(int32_t moe_layer) const;

  // Brings an expert into a place, if it is in none, and keeps it there until ForgetCopies.
  // `copier`: a Device of the same memory that is the caller's alone. may_go_on and errors as
  // ExpertHost::Copy; RESOURCE_EXHAUSTED when all places are kept.
  absl::Status Copy(kernels::Device& copier, int32_t moe_layer, int32_t expert,
                    absl::FunctionRef<bool(int64_t bytes)> may_go_on);
  // What was copied is kept no longer but by leases.
  void ForgetCopies();

  int32_t places() const { return static_cast<int32_t>(places_.size()); }
  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }

 private:
  using Name = std::pair<int32_t, int32_t>;  // MoE layer, expert
  struct Place {
    Name holds = {-1, -1};
    bool complete = false;    // not while a copy comes
    int32_t keepers = 0;      // leases and copies
    uint64_t kept_until = 0;  // when the last keeper went: the oldest is written first
    std::shared_ptr<kernels::Fence> last_read;  // behind the ops that may read it; nullable
  };
  struct Taken {
    size_t place = 0;
    bool complete = false;
    std::shared_ptr<kernels::Fence> last_read;  // to be waited for; nullable
  };

  ExpertPlaces(kernels::Device& device, const ModelConfig& config, const Weights& weights)
      : device_(device), config_(config), weights_(weights) {}
  ExpertWeights At(size_t place, const Name& name) const;
  absl::StatusOr<Taken> TakeFor(const Name& name);
  absl::Status Fill(kernels::Device& copier, size_t place, const Name& name,
                    absl::FunctionRef<bool(int64_t bytes)> may_go_on);
  void Drop(Place& place);

  kernels::Device& device_;
  const ModelConfig& config_;
  const Weights& weights_;
  kernels::DeviceBuffer buffer_;
  int64_t place_bytes_ = 0;

  std::mutex mutex_;
  uint64_t clock_ = 0;            // guarded by mutex_, like the rest; counts keepers gone
  std::vector<Place> places_;     // its size does not change
  std::map<Name, size_t> where_;  // complete, or being filled
  std::vector<size_t> copies_;    // kept until ForgetCopies
};

}  // namespace baton::model

#endif  // BATON_MODEL_EXPERT_PLACES_H_
