// The host's side of ops on latent pages: arguments, launches, the status.

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/rope_and_page.h"
#include "kernels/cuda/views.h"
#include "kernels/page_entry.h"

namespace baton::kernels::cuda {
namespace {

Pages PagesOf(const KvPages& pages) {
  return {
      .data = pages.data.as<uint8_t>(),
      .page_bytes = pages.data.strides[0],
      .entry_bytes = static_cast<int32_t>(KvEntryBytes(pages.format, pages.kv_lora, pages.rope)),
      .rope_offset = static_cast<int32_t>(RopeOffset(pages)),
      .page_tokens = pages.page_tokens,
      .kv_lora = pages.kv_lora,
      .rope = pages.rope,
      .format = pages.format == KvFormat::kF32    ? PageFormat::kF32
                : pages.format == KvFormat::kBF16 ? PageFormat::kBf16
                                                  : PageFormat::kFp8};
}

}  // namespace

absl::Status RopeAndPage(Device& device, const RopeAndPageArgs& args) {
  CudaState& state = CudaState::Begin(device);
  RopeAndPageLaunch launch{.q = RowsOf(args.q),
                           .kv_a = RowsOf(args.kv_a),
                           .norm = RowsOf(args.kv_norm),
                           .cos = args.cos.as<const float>(),
                           .sin = args.sin.as<const float>(),
                           .positions = args.positions.as<const int32_t>(),
                           .slots = args.slots.as<const int64_t>(),
                           .pages = PagesOf(args.pages),
                           .rows = static_cast<int>(args.positions.dim(0)),
                           .epsilon = args.eps};
  if (!args.q.absent()) {
    launch.heads = static_cast<int>(args.q.dim(1));
    launch.head = static_cast<int>(args.q.dim(2));
  }
  return state.Finish(LaunchRopeAndPage(launch, state.stream()), "rope_and_page");
}

}  // namespace baton::kernels::cuda
