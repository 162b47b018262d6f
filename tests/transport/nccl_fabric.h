#ifndef BATON_TESTS_TRANSPORT_NCCL_FABRIC_H_
#define BATON_TESTS_TRANSPORT_NCCL_FABRIC_H_

// Groups over NCCL for tests that know the host's memory alone: each call's inputs go to the rank's
// GPU and its results come back. And the same without that, for ranks with a GPU.

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/sum_terms.h"
#include "tests/transport/group_fabrics.h"
#include "transport/nccl/nccl_group.h"

namespace baton::transport {

// The GPU of a rank: a stream, and memory that grows.
class TestGpu {
 public:
  explicit TestGpu(int gpu) : gpu_(gpu) {
    Use();
    BATON_CHECK_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~TestGpu() {
    Use();
    for (auto& [data, bytes] : slots_) (void)cudaFree(data);
    (void)cudaStreamDestroy(stream_);
  }
  int gpu() const { return gpu_; }
  cudaStream_t stream() const { return stream_; }
  void Use() const { BATON_CHECK_EQ(cudaSetDevice(gpu_), cudaSuccess); }

  // Slot 0 or 1, `bytes` long, with what the host has.
  std::span<std::byte> Upload(size_t slot, std::span<const std::byte> host) {
    Use();
    auto& [data, bytes] = slots_[slot];
    if (bytes < host.size()) {
      (void)cudaFree(std::exchange(data, nullptr));
      BATON_CHECK_EQ(cudaMalloc(&data, host.size()), cudaSuccess);
      bytes = host.size();
    }
    BATON_CHECK_EQ(cudaMemcpyAsync(data, host.data(), host.size(), cudaMemcpyHostToDevice, stream_),
                   cudaSuccess);
    return {static_cast<std::byte*>(data), host.size()};
  }
  void Download(size_t slot, std::span<std::byte> host) {
    BATON_CHECK_EQ(cudaMemcpyAsync(host.data(), slots_[slot].first, host.size(),
                                   cudaMemcpyDeviceToHost, stream_),
                   cudaSuccess);
    BATON_CHECK_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

 private:
  const int gpu_;
  cudaStream_t stream_ = nullptr;
  std::pair<void*, size_t> slots_[2] = {};
};

class StagedCollectives final : public Collectives {
 public:
  StagedCollectives(std::unique_ptr<Collectives> inner, std::shared_ptr<TestGpu> gpu)
      : gpu_(std::move(gpu)), inner_(std::move(inner)) {}
  const Collectives& inner() const { return *inner_; }

  int world_size() const override { return inner_->world_size(); }
  int rank() const override { return inner_->rank(); }
  bool is_present(int rank) const override { return inner_->is_present(rank); }
  uint64_t generation() const override { return inner_->generation(); }
  absl::Status health() const override { return inner_->health(); }
  std::vector<int> lost_ranks() const override { return inner_->lost_ranks(); }
  std::vector<int> gone_ranks() const override { return inner_->gone_ranks(); }
  void MoveOn() override { inner_->MoveOn(); }
  void Abort(const absl::Status& why) override { inner_->Abort(why); }
  void SetWakeup(std::function<void()> wakeup) override { inner_->SetWakeup(std::move(wakeup)); }
  void Ring() override { inner_->Ring(); }
  bool PeerWaits() const override { return inner_->PeerWaits(); }
  absl::Status Barrier(Duration timeout) override { return inner_->Barrier(timeout); }

  absl::Status AllReduceSum(std::span<std::byte> data, ReduceType type, Duration timeout) override {
    const std::span<std::byte> on_gpu = gpu_->Upload(0, data);
    return Back(OnGpu().AllReduceSum(on_gpu, type, timeout), timeout, 0, data);
  }
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all,
                         Duration timeout) override {
    const std::span<std::byte> from = gpu_->Upload(0, mine), to = gpu_->Upload(1, all);
    return Back(OnGpu().AllGather(from, to, timeout), timeout, 1, all);
  }
  absl::Status Broadcast(std::span<std::byte> data, int root, Duration timeout) override {
    const std::span<std::byte> on_gpu = gpu_->Upload(0, data);
    return Back(OnGpu().Broadcast(on_gpu, root, timeout), timeout, 0, data);
  }
  absl::Status AllToAllV(std::span<const std::byte> send, std::span<const size_t> send_bytes,
                         std::span<std::byte> recv, std::span<const size_t> recv_bytes,
                         Duration timeout) override {
    const std::span<std::byte> from = gpu_->Upload(0, send), to = gpu_->Upload(1, recv);
    return Back(OnGpu().AllToAllV(from, send_bytes, to, recv_bytes, timeout), timeout, 1, recv);
  }

 private:
  DeviceCalls& OnGpu() { return *inner_->ForDevice(); }
  absl::Status Back(absl::Status status, Duration timeout, size_t slot, std::span<std::byte> host) {
    if (status.ok()) status = OnGpu().Settle(timeout);
    if (status.ok() && !host.empty()) gpu_->Download(slot, host);
    return status;
  }

  const std::shared_ptr<TestGpu> gpu_;
  const std::unique_ptr<Collectives> inner_;
};

class StagedRendezvous final : public Rendezvous {
 public:
  StagedRendezvous(std::unique_ptr<Rendezvous> inner, std::shared_ptr<TestGpu> gpu)
      : gpu_(std::move(gpu)), inner_(std::move(inner)) {}
  absl::StatusOr<std::unique_ptr<Collectives>> Join(const GroupOptions& options) override {
    return Stage(inner_->Join(options));
  }
  absl::StatusOr<std::unique_ptr<Collectives>> Regroup(const GroupOptions& options,
                                                       const RegroupOptions& regroup,
                                                       const Collectives& before) override {
    return Stage(
        inner_->Regroup(options, regroup, static_cast<const StagedCollectives&>(before).inner()));
  }
  std::vector<int> Knocking() override { return inner_->Knocking(); }

 private:
  absl::StatusOr<std::unique_ptr<Collectives>> Stage(
      absl::StatusOr<std::unique_ptr<Collectives>> group) {
    if (!group.ok()) return group;
    return std::make_unique<StagedCollectives>(*std::move(group), gpu_);
  }

  const std::shared_ptr<TestGpu> gpu_;
  const std::unique_ptr<Rendezvous> inner_;
};

inline cudaError_t SumByKernel(ReduceType type, std::span<const std::byte* const> terms,
                               std::span<std::byte> out, cudaStream_t stream) {
  const bool bf16 = type == ReduceType::kBF16;
  kernels::cuda::SumTermsLaunch launch{
      .count = static_cast<int>(terms.size()),
      .out = out.data(),
      .elements = static_cast<int64_t>(out.size() / (bf16 ? 2 : 4)),
      .bf16 = bf16};
  for (size_t i = 0; i < terms.size(); ++i) launch.terms[i] = terms[i];
  return kernels::cuda::LaunchSumTerms(launch, stream);
}

class NcclGroupFabric : public GroupFabric {
 public:
  // Ranks have GPUs 0 .. gpus - 1 in turn. Not `staged`, their groups are as a worker's: for the
  // host's memory, and ForDevice for that of their GPUs.
  explicit NcclGroupFabric(int gpus, bool staged = true) : gpus_(gpus), staged_(staged) {}
  // Of the last NewRendezvous.
  const TestGpu& gpu(int rank) const { return *made_[static_cast<size_t>(rank)]; }
  std::vector<std::unique_ptr<Rendezvous>> NewRendezvous(int ranks, bool knows_all) override {
    std::vector<std::unique_ptr<TcpRendezvous>> made;
    std::vector<std::shared_ptr<TestGpu>>& gpus = made_;
    gpus.clear();
    std::vector<std::string> addresses;
    for (int rank = 0; rank < ranks; ++rank) {
      gpus.push_back(std::make_shared<TestGpu>(rank % gpus_));
      NcclGroupOptions options;
      options.hosts.listen_ip = "127.0.0.1";
      options.gpu = gpus.back()->gpu();
      options.stream = gpus.back()->stream();
      options.sum = SumByKernel;
      made.push_back(CreateNcclRendezvous(options, std::make_shared<MonotonicClock>()).value());
      addresses.push_back("127.0.0.1:" + std::to_string(made.back()->port()));
    }
    if (!knows_all) addresses.resize(1);
    std::vector<std::unique_ptr<Rendezvous>> out;
    for (size_t rank = 0; rank < made.size(); ++rank) {
      made[rank]->SetAddresses(addresses);
      if (staged_) {
        out.push_back(std::make_unique<StagedRendezvous>(std::move(made[rank]), gpus[rank]));
      } else {
        out.push_back(std::move(made[rank]));
      }
    }
    return out;
  }

 private:
  const int gpus_;
  const bool staged_;
  std::vector<std::shared_ptr<TestGpu>> made_;  // [ranks]
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_NCCL_FABRIC_H_
