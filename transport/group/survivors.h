#ifndef BATON_TRANSPORT_GROUP_SURVIVORS_H_
#define BATON_TRANSPORT_GROUP_SURVIVORS_H_

// What a rank that regroups (group.h) knows of who is left of the group before. One thread.

#include <span>
#include <vector>

#include "transport/collectives.h"

namespace baton::transport {

class Survivors {
 public:
  // `before` outlives it.
  explicit Survivors(const Collectives& before);

  // Takes in what the group before has learned since.
  void Update();
  // Somebody takes these for lost. This rank itself never is, here.
  void Lose(std::span<const int> ranks);
  void Lose(int rank) { Lose(std::span(&rank, 1)); }

  // The lowest that is not lost: there is always this rank.
  int host() const;
  // Of the group before and not lost.
  bool Expects(int rank) const;
  std::vector<int> lost() const;  // ascending

 private:
  const Collectives& before_;
  std::vector<bool> members_;  // [ranks]
  std::vector<bool> lost_;
};

// All of `world_size` ranks that are not in `present`, which ascends.
std::vector<int> AbsentRanks(int world_size, const std::vector<int>& present);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_SURVIVORS_H_
