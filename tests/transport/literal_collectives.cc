#include "tests/transport/literal_collectives.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/random.h"

namespace baton::transport {
namespace {

using Bytes = std::vector<std::byte>;

// What rank `rank` brings to call `call`.
Bytes RandomBytes(uint64_t seed, int call, int rank, size_t size) {
  Rng rng(seed * 1'000'003 + static_cast<uint64_t>(call) * 1009 + static_cast<uint64_t>(rank));
  Bytes out(size);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t word = rng.Next();
    std::memcpy(out.data() + i, &word, std::min<size_t>(8, size - i));
  }
  return out;
}

// Finite, of very different magnitudes and signs, so that the order of addition shows.
Bytes RandomNumbers(uint64_t seed, int call, int rank, size_t elements, ReduceType type) {
  Rng rng(seed * 1'000'003 + static_cast<uint64_t>(call) * 1009 + static_cast<uint64_t>(rank));
  const size_t element_bytes = type == ReduceType::kF32 ? 4 : 2;
  Bytes out(elements * element_bytes);
  for (size_t i = 0; i < elements; ++i) {
    const uint64_t word = rng.Next();
    const uint32_t sign_and_fraction = static_cast<uint32_t>(word) & 0x807fffff;
    const uint32_t exponent = 112 + static_cast<uint32_t>(word >> 59);  // 2^-15 to 2^16
    const uint32_t bits = sign_and_fraction | exponent << 23;
    // The upper half is a bfloat16.
    const std::byte* bytes = reinterpret_cast<const std::byte*>(&bits) + (4 - element_bytes);
    std::memcpy(out.data() + i * element_bytes, bytes, element_bytes);
  }
  return out;
}

float At(const Bytes& data, size_t i, ReduceType type) {
  uint32_t bits = 0;
  if (type == ReduceType::kF32) {
    std::memcpy(&bits, data.data() + i * 4, 4);
  } else {
    uint16_t half = 0;
    std::memcpy(&half, data.data() + i * 2, 2);
    bits = uint32_t{half} << 16;
  }
  return std::bit_cast<float>(bits);
}

void Append(float value, ReduceType type, Bytes* out) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if (type == ReduceType::kBF16) {
    const uint32_t rest = bits & 0xffff;
    const bool is_odd = (bits & 0x10000) != 0;
    bits >>= 16;
    if (rest > 0x8000 || (rest == 0x8000 && is_odd)) ++bits;
  }
  const std::byte* bytes = reinterpret_cast<const std::byte*>(&bits);
  out->insert(out->end(), bytes, bytes + (type == ReduceType::kF32 ? 4 : 2));
}

class Script {
 public:
  Script(Collectives* group, uint64_t seed, Duration timeout)
      : group_(group), seed_(seed), timeout_(timeout), rng_(seed) {}

  std::string Call(int call) {
    call_ = call;
    switch (rng_.Below(6)) {
      case 0:
        return Reduce(ReduceType::kF32);
      case 1:
        return Reduce(ReduceType::kBF16);
      case 2:
        return Gather();
      case 3:
        return Cast();
      case 4:
        return AllToAll();
      default:
        return Verdict("Barrier", group_->Barrier(timeout_), {}, {});
    }
  }

 private:
  size_t RandomSize() {
    constexpr size_t kSizes[] = {0, 1, 3, 64, 1000, 8192, 8193, 65536, 100'003, 300'000};
    const size_t size = kSizes[rng_.Below(std::size(kSizes))];
    return rng_.Chance(0.5) ? size : rng_.Below(size + 1);
  }
  int ranks() const { return group_->world_size(); }

  std::string Verdict(const char* what, const absl::Status& status, const Bytes& got,
                      const Bytes& wanted) const {
    const std::string where = std::string(what) + ", call " + std::to_string(call_) + ", rank " +
                              std::to_string(group_->rank()) + ", seed " + std::to_string(seed_);
    if (!status.ok()) return where + ": " + status.ToString();
    if (got != wanted) return where + ": wrong bytes";
    return "";
  }

  std::string Reduce(ReduceType type) {
    const size_t elements = RandomSize() / 4;
    std::vector<Bytes> terms;
    for (int rank = 0; rank < ranks(); ++rank) {
      if (!group_->is_present(rank)) continue;
      terms.push_back(RandomNumbers(seed_, call_, rank, elements, type));
    }
    Bytes wanted;
    for (size_t i = 0; i < elements; ++i) {
      float sum = At(terms[0], i, type);
      for (size_t t = 1; t < terms.size(); ++t) sum += At(terms[t], i, type);
      Append(sum, type, &wanted);
    }
    Bytes data = RandomNumbers(seed_, call_, group_->rank(), elements, type);
    return Verdict("AllReduceSum", group_->AllReduceSum(data, type, timeout_), data, wanted);
  }

  std::string Gather() {
    const size_t size = RandomSize();
    Bytes wanted;
    for (int rank = 0; rank < ranks(); ++rank) {
      const Bytes part =
          group_->is_present(rank) ? RandomBytes(seed_, call_, rank, size) : Bytes(size);
      wanted.insert(wanted.end(), part.begin(), part.end());
    }
    Bytes all(wanted.size(), std::byte{0xee});
    const Bytes mine = RandomBytes(seed_, call_, group_->rank(), size);
    return Verdict("AllGather", group_->AllGather(mine, all, timeout_), all, wanted);
  }

  std::string Cast() {
    const size_t size = RandomSize();
    int root = static_cast<int>(rng_.Below(static_cast<uint64_t>(ranks())));
    while (!group_->is_present(root)) root = (root + 1) % ranks();
    Bytes data = RandomBytes(seed_, call_, group_->rank(), size);
    const Bytes wanted = RandomBytes(seed_, call_, root, size);
    return Verdict("Broadcast", group_->Broadcast(data, root, timeout_), data, wanted);
  }

  std::string AllToAll() {
    // sizes[from][to], the same matrix on all ranks.
    std::vector<std::vector<size_t>> sizes;
    for (int from = 0; from < ranks(); ++from) {
      std::vector<size_t>& row = sizes.emplace_back();
      for (int to = 0; to < ranks(); ++to) {
        const size_t size = RandomSize();
        row.push_back(group_->is_present(from) && group_->is_present(to) ? size : 0);
      }
    }
    const size_t self = static_cast<size_t>(group_->rank());
    const auto message = [&](size_t from, size_t to) {
      return RandomBytes(seed_ + to, call_, static_cast<int>(from), sizes[from][to]);
    };
    Bytes send, wanted;
    std::vector<size_t> recv_sizes;
    for (size_t peer = 0; peer < sizes.size(); ++peer) {
      const Bytes out = message(self, peer), in = message(peer, self);
      send.insert(send.end(), out.begin(), out.end());
      wanted.insert(wanted.end(), in.begin(), in.end());
      recv_sizes.push_back(in.size());
    }
    Bytes recv(wanted.size());
    return Verdict("AllToAllV", group_->AllToAllV(send, sizes[self], recv, recv_sizes, timeout_),
                   recv, wanted);
  }

  Collectives* const group_;
  const uint64_t seed_;
  const Duration timeout_;
  Rng rng_;
  int call_ = 0;
};

}  // namespace

std::string RunScript(Collectives* group, uint64_t seed, int calls, Duration timeout) {
  Script script(group, seed, timeout);
  for (int call = 0; call < calls; ++call) {
    const std::string trouble = script.Call(call);
    if (!trouble.empty()) return trouble;
  }
  return "";
}

}  // namespace baton::transport
