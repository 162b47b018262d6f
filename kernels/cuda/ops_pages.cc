// The host's side of hand-off messages. Both ops return when the GPU is done: their answer depends
// on the checksum, and a message's memory may be used again when they return. A message in the
// host's pageable memory passes through working memory of the GPU.

// For the secret of a seed.
#define XXH_STATIC_LINKING_ONLY

#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/pages.h"
#include "xxhash.h"

namespace baton::kernels::cuda {
namespace {

// Enough warps in flight for the memory's bandwidth.
constexpr int kBlocksPerProcessor = 8;

bool GpuReads(const void* address) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  return attributes.type != cudaMemoryTypeUnregistered;
}

// From the arguments of both ops, which name them alike, with the message at `message`. The ranges
// are copied to the GPU. `bytes` of the message > 0.
template <typename Args>
absl::StatusOr<PagesLaunch> Prepare(CudaState& state, const Args& args, void* message) {
  PagesLaunch launch{.pages = args.pages.data.template as<uint8_t>(),
                     .message = static_cast<uint8_t*>(message),
                     .bytes = static_cast<int64_t>(args.message.bytes())};
  const int64_t entry = KvEntryBytes(args.pages.format, args.pages.kv_lora, args.pages.rope);
  const int64_t page = args.pages.data.strides[0];
  std::vector<PagePiece> pieces;
  int64_t at = 0;
  for (const PageRange& range : args.ranges) {
    if (range.count == 0) continue;
    pieces.push_back({.message = at, .page = range.page * page + range.first * entry});
    at += range.count * entry;
  }
  launch.count = static_cast<int>(pieces.size());
  pieces.push_back({.message = at, .page = 0});
  launch.words =
      ((reinterpret_cast<uintptr_t>(launch.pages) | reinterpret_cast<uintptr_t>(launch.message) |
        static_cast<uintptr_t>(entry) | static_cast<uintptr_t>(page)) &
       7u) == 0;
  BATON_ASSIGN_OR_RETURN(launch.pieces, state.Upload(pieces, "copy of page ranges to the GPU"));
  const int64_t blocks = (launch.bytes + kChecksumBlock - 1) / kChecksumBlock;
  BATON_ASSIGN_OR_RETURN(launch.sums, state.Scratch<uint64_t>(blocks * kChecksumLanes));
  XXH3_generateSecret_fromSeed(launch.secret, args.seed);
  return launch;
}

constexpr char kCopyBack[] = "copy of a checksum from the GPU";

// Of a message whose sums an earlier launch makes.
absl::StatusOr<uint64_t> Checksum(CudaState& state, const PagesLaunch& launch, uint64_t seed) {
  if (launch.bytes < kShortestChecksum) {
    std::array<uint8_t, kShortestChecksum> message{};
    const size_t bytes = static_cast<size_t>(launch.bytes);
    BATON_RETURN_IF_ERROR(state.CopyToHost(message.data(), launch.message, bytes, kCopyBack));
    return XXH3_64bits_withSeed(message.data(), bytes, seed);
  }
  BATON_ASSIGN_OR_RETURN(uint64_t* const on_gpu, state.Scratch<uint64_t>(1));
  BATON_RETURN_IF_ERROR(
      CudaStatus(LaunchPagesChecksum(launch, on_gpu, state.stream()), "pages_checksum"));
  uint64_t checksum = 0;
  BATON_RETURN_IF_ERROR(state.CopyToHost(&checksum, on_gpu, sizeof(checksum), kCopyBack));
  return checksum;
}

}  // namespace

absl::Status PagesPack(Device& device, const PagesPackArgs& args) {
  CudaState& state = CudaState::Begin(device);
  if (args.message.bytes() == 0) {
    *args.checksum = XXH3_64bits_withSeed(nullptr, 0, args.seed);
    return absl::OkStatus();
  }
  const size_t bytes = args.message.bytes();
  void* message = args.message.data;
  const bool is_direct = GpuReads(message);
  if (!is_direct) {
    BATON_ASSIGN_OR_RETURN(message, state.ScratchBytes(bytes));
  }
  BATON_ASSIGN_OR_RETURN(const PagesLaunch launch, Prepare(state, args, message));
  const int blocks = kBlocksPerProcessor * state.processors();
  BATON_RETURN_IF_ERROR(
      CudaStatus(LaunchPagesGather(launch, blocks, state.stream()), "pages_gather"));
  BATON_ASSIGN_OR_RETURN(*args.checksum, Checksum(state, launch, args.seed));
  if (is_direct) return absl::OkStatus();
  return state.CopyToHost(args.message.data, message, bytes, "copy of a message from the GPU");
}

absl::Status PagesUnpack(Device& device, const PagesUnpackArgs& args) {
  CudaState& state = CudaState::Begin(device);
  const int blocks = kBlocksPerProcessor * state.processors();
  uint64_t checksum = XXH3_64bits_withSeed(nullptr, 0, args.seed);
  PagesLaunch launch;
  if (args.message.bytes() > 0) {
    void* message = args.message.data;
    if (!GpuReads(message)) {
      BATON_ASSIGN_OR_RETURN(message, state.UploadBytes(message, args.message.bytes(),
                                                        "copy of a message to the GPU"));
    }
    BATON_ASSIGN_OR_RETURN(launch, Prepare(state, args, message));
    BATON_RETURN_IF_ERROR(
        CudaStatus(LaunchPagesSums(launch, blocks, state.stream()), "pages_sums"));
    BATON_ASSIGN_OR_RETURN(checksum, Checksum(state, launch, args.seed));
  }
  if (checksum != args.checksum) {
    return absl::DataLossError(absl::StrCat("PagesUnpack: the message of ", args.message.bytes(),
                                            " bytes has checksum ", absl::Hex(checksum),
                                            ", expected ", absl::Hex(args.checksum)));
  }
  if (launch.bytes == 0) return absl::OkStatus();
  BATON_RETURN_IF_ERROR(
      CudaStatus(LaunchPagesScatter(launch, blocks, state.stream()), "pages_scatter"));
  return CudaStatus(cudaStreamSynchronize(state.stream()), "pages_scatter");
}

}  // namespace baton::kernels::cuda
