#ifndef BATON_MODEL_KV_CACHE_H_
#define BATON_MODEL_KV_CACHE_H_

// The page arrays of one rank: for each layer total_pages pages of page_tokens latents, in device
// memory. A page id names the same slot in every layer. Owns the memory, knows nothing of who holds
// which page (that is scheduler/'s). One thread, the runner's.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/config.h"

namespace baton::model {

struct KvCacheOptions {
  kernels::KvFormat format = kernels::KvFormat::kBF16;
  int32_t page_tokens = 64;
  int32_t total_pages = 0;
};

class KvCache {
 public:
  // RESOURCE_EXHAUSTED when the memory is not there. `device` must outlive the cache. `mover` packs
  // and unpacks, as a device of its own beside the one that computes (of one GPU: with a queue of
  // its own); null: `device`.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(kernels::Device& device,
                                                         const ModelConfig& config,
                                                         const KvCacheOptions& options,
                                                         kernels::Device* mover = nullptr);

  int32_t layers() const { return static_cast<int32_t>(buffers_.size()); }
  int32_t total_pages() const { return options_.total_pages; }
  int32_t page_tokens() const { return options_.page_tokens; }
  kernels::KvFormat format() const { return options_.format; }
  int32_t entry_bytes() const { return entry_bytes_; }
  // What the ops take; layer in [0, layers()).
  kernels::KvPages pages(int32_t layer) const;

  // See Runner::PackPages and Runner::UnpackPages: with a mover, what wrote the pages has finished,
  // and what reads them begins later. Page ids and sizes must be right (CHECK).
  uint64_t Pack(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                std::span<std::byte> out);
  absl::Status Unpack(int32_t layer, std::span<const PageId> pages, int32_t token_count,
                      std::span<const std::byte> bytes, uint64_t checksum);

 private:
  KvCache(kernels::Device& mover, const ModelConfig& config, const KvCacheOptions& options);
  // The first `token_count` tokens of `pages` as ranges_; CHECKs that they fit `bytes`.
  absl::Span<const kernels::PageRange> Ranges(int32_t layer, std::span<const PageId> pages,
                                              int32_t token_count, size_t bytes);

  kernels::Device& mover_;
  const KvCacheOptions options_;
  const int32_t kv_lora_;
  const int32_t rope_;
  const int32_t entry_bytes_;
  std::vector<kernels::DeviceBuffer> buffers_;  // one for each layer
  std::vector<kernels::PageRange> ranges_;      // of the call in progress
};

}  // namespace baton::model

#endif  // BATON_MODEL_KV_CACHE_H_
