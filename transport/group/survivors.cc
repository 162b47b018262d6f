#include "transport/group/survivors.h"

#include <algorithm>

namespace baton::transport {

Survivors::Survivors(const Collectives& before) : before_(before) {
  const size_t ranks = static_cast<size_t>(before.world_size());
  members_.resize(ranks);
  lost_.resize(ranks);
  for (size_t r = 0; r < ranks; ++r) members_[r] = before.is_present(static_cast<int>(r));
  Update();
}

void Survivors::Update() {
  Lose(before_.lost_ranks());
  Lose(before_.gone_ranks());
}

void Survivors::Lose(std::span<const int> ranks) {
  for (const int rank : ranks) {
    const bool is_rank = rank >= 0 && rank < before_.world_size();
    if (is_rank && rank != before_.rank()) lost_[static_cast<size_t>(rank)] = true;
  }
}

int Survivors::host() const {
  int rank = 0;
  while (rank != before_.rank() && !Expects(rank)) ++rank;
  return rank;
}

bool Survivors::Expects(int rank) const {
  return members_[static_cast<size_t>(rank)] && !lost_[static_cast<size_t>(rank)];
}

std::vector<int> Survivors::lost() const {
  std::vector<int> ranks;
  for (size_t r = 0; r < lost_.size(); ++r) {
    if (lost_[r]) ranks.push_back(static_cast<int>(r));
  }
  return ranks;
}

std::vector<int> AbsentRanks(int world_size, const std::vector<int>& present) {
  std::vector<int> absent;
  for (int rank = 0; rank < world_size; ++rank) {
    if (!std::binary_search(present.begin(), present.end(), rank)) absent.push_back(rank);
  }
  return absent;
}

}  // namespace baton::transport
