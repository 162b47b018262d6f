#include "model/kv_cache.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace baton::model {

using kernels::DType;
using kernels::TensorView;

KvCache::KvCache(kernels::Device& mover, const ModelConfig& config, const KvCacheOptions& options)
    : mover_(mover),
      options_(options),
      kv_lora_(config.kv_lora_rank),
      rope_(config.qk_rope_head_dim),
      entry_bytes_(static_cast<int32_t>(
          kernels::KvEntryBytes(options.format, config.kv_lora_rank, config.qk_rope_head_dim))) {}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(kernels::Device& device,
                                                         const ModelConfig& config,
                                                         const KvCacheOptions& options,
                                                         kernels::Device* mover) {
  std::unique_ptr<KvCache> cache(new KvCache(mover == nullptr ? device : *mover, config, options));
  const size_t layer_bytes =
      static_cast<size_t>(options.total_pages) * options.page_tokens * cache->entry_bytes_;
  for (int32_t i = 0; i < config.layers; ++i) {
    BATON_ASSIGN_OR_RETURN(kernels::DeviceBuffer buffer, device.Allocate(layer_bytes));
    cache->buffers_.push_back(std::move(buffer));
  }
  return cache;
}

kernels::KvPages KvCache::pages(int32_t layer) const {
  BATON_CHECK(layer >= 0 && layer < layers());
  kernels::KvPages pages;
  pages.data =
      TensorView::Contiguous(buffers_[layer].data(), DType::kU8,
                             {options_.total_pages, int64_t{options_.page_tokens} * entry_bytes_});
  pages.format = options_.format;
  pages.page_tokens = options_.page_tokens;
  pages.kv_lora = kv_lora_;
  pages.rope = rope_;
  return pages;
}

absl::Span<const kernels::PageRange> KvCache::Ranges(int32_t layer, std::span<const PageId> pages,
                                                     int32_t token_count, size_t bytes) {
  BATON_CHECK(layer >= 0 && layer < layers());
  BATON_CHECK_GE(token_count, 0);
  BATON_CHECK_EQ(bytes, static_cast<size_t>(token_count) * entry_bytes_);
  const int32_t page_tokens = options_.page_tokens;
  const size_t used = (static_cast<size_t>(token_count) + page_tokens - 1) / page_tokens;
  BATON_CHECK_LE(used, pages.size());
  ranges_.clear();
  for (size_t i = 0; i < used; ++i) {
    BATON_CHECK_LT(pages[i].value(), static_cast<uint32_t>(options_.total_pages));
    const int32_t before = static_cast<int32_t>(i) * page_tokens;
    ranges_.push_back({.page = static_cast<int32_t>(pages[i].value()),
                       .first = 0,
                       .count = std::min(page_tokens, token_count - before)});
  }
  return ranges_;
}

uint64_t KvCache::Pack(int32_t layer, std::span<const PageId> page_ids, int32_t token_count,
                       std::span<std::byte> out) {
  uint64_t checksum = 0;
  kernels::PagesPackArgs args;
  args.ranges = Ranges(layer, page_ids, token_count, out.size());
  args.pages = pages(layer);
  args.message = TensorView::Contiguous(out.data(), DType::kU8, {static_cast<int64_t>(out.size())});
  args.checksum = &checksum;
  const absl::Status status = PagesPack(mover_, args);
  BATON_CHECK_MSG(status.ok(), std::string(status.message()));  // every argument was checked above
  return checksum;
}

absl::Status KvCache::Unpack(int32_t layer, std::span<const PageId> page_ids, int32_t token_count,
                             std::span<const std::byte> bytes, uint64_t checksum) {
  kernels::PagesUnpackArgs args;
  args.ranges = Ranges(layer, page_ids, token_count, bytes.size());
  args.pages = pages(layer);
  args.message =
      TensorView::Contiguous(bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())});
  args.checksum = checksum;
  return PagesUnpack(mover_, args);
}

}  // namespace baton::model
