#include "transport/nccl/nccl_transport.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/nccl/nccl_engine.h"
#include "transport/nccl/nccl_status.h"
#include "transport/region_table.h"
#include "transport/transfer_ledger.h"

namespace baton::transport {
namespace {

absl::Status CheckOptions(const NcclTransportOptions& options) {
  if (options.max_posts_in_flight == 0 || options.max_transfers == 0 ||
      options.max_waiting_messages == 0 || options.max_message_bytes == 0 ||
      options.max_peers == 0 || options.max_communicators == 0 ||
      options.max_concurrent_transfers == 0 || options.max_ctas < 1) {
    return absl::InvalidArgumentError(
        "nccl: max_message_bytes, max_posts_in_flight, max_transfers, max_waiting_messages, "
        "max_peers, max_communicators, max_concurrent_transfers and max_ctas must be at least 1");
  }
  if (options.staging_bytes > 0 && options.staging_bytes < options.max_message_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nccl: staging_bytes is ", options.staging_bytes, "; at least ", options.max_message_bytes,
        " are needed for one message of max_message_bytes"));
  }
  if (options.connect_timeout < Duration::Millis(1) ||
      options.stall_timeout < Duration::Millis(1) ||
      options.transfer_timeout < Duration::Millis(1) || options.coalesce_delay < Duration()) {
    return absl::InvalidArgumentError(
        "nccl: connect_timeout, stall_timeout and transfer_timeout must be at least 1 ms, "
        "coalesce_delay not negative");
  }
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaSuccess && options.gpu >= 0 && options.gpu < count) return absl::OkStatus();
  (void)cudaGetLastError();
  return absl::FailedPreconditionError(
      absl::StrCat("nccl: GPU ", options.gpu, " is not one of the ", count,
                   " of this process; check `nvidia-smi`, or set handoff.transport to ucx"));
}

absl::StatusOr<UcxVersion> LoadedNcclVersion() {
  int code = 0;
  BATON_RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&code), "ncclGetVersion"));
  // 2.9 and later: major * 10000 + minor * 100 + patch.
  return UcxVersion{static_cast<unsigned>(code / 10000), static_cast<unsigned>(code / 100 % 100)};
}

// The loop thread's side: checks, counts what is in flight, and passes commands to the engine.
class NcclEndpoint final : public NcclTransport {
 public:
  NcclEndpoint(const NcclTransportOptions& options, UcxVersion version, cudaStream_t copies,
               std::unique_ptr<NcclEngine> engine)
      : options_(options), version_(version), copies_(copies), engine_(std::move(engine)) {}

  ~NcclEndpoint() override {
    // Polled blocks first.
    polled_.clear();
    engine_->Stop();
    (void)cudaSetDevice(options_.gpu);
    (void)cudaStreamDestroy(copies_);
  }

  Capabilities capabilities() const override {
    return {.name = "nccl",
            .across_processes = true,
            .device_memory = true,
            .max_message_bytes = options_.max_message_bytes,
            .max_posts_in_flight = options_.max_posts_in_flight};
  }

  std::string address() const override { return engine_->address(); }
  NcclCounters counters() const override { return engine_->counters(); }
  uint64_t staging_in_use_bytes() const override { return engine_->staging_in_use_bytes(); }
  void SetWakeup(std::function<void()> wakeup) override { engine_->SetWakeup(std::move(wakeup)); }

  absl::StatusOr<std::shared_ptr<std::byte>> Allocate(size_t bytes) override {
    return AllocatePayloads(options_.gpu, bytes, engine_->memory());
  }

  absl::Status CopyPayload(std::span<std::byte> to, std::span<const std::byte> from) override {
    BATON_CHECK_EQ(to.size(), from.size());
    if (to.empty()) return absl::OkStatus();
    (void)cudaSetDevice(options_.gpu);
    BATON_RETURN_IF_ERROR(RuntimeStatus(
        cudaMemcpyAsync(to.data(), from.data(), to.size(), cudaMemcpyDefault, copies_),
        "a copy of a payload"));
    return RuntimeStatus(cudaStreamSynchronize(copies_), "a copy of a payload");
  }

  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override {
    if (!memory.empty() && !IsPayloadMemory(memory.data())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Register: ", memory.size(),
          " bytes of the host's pageable memory, which GPUs cannot read; take them from Allocate"));
    }
    return regions_.Add(memory);
  }
  void Unregister(RegionId region) override { BATON_CHECK(regions_.Remove(region)); }

  absl::StatusOr<TransferId> Prepare(const std::string& peer_address) override {
    BATON_ASSIGN_OR_RETURN(const NcclAddress address, DecodeNcclAddress(version_, peer_address));
    BATON_ASSIGN_OR_RETURN(const TransferId id, ledger_.Open());
    engine_->Submit({.kind = NcclCommand::Kind::kOpen,
                     .transfer = id,
                     .bytes = peer_address,
                     .address = address});
    return id;
  }

  absl::Status Post(TransferId id, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override {
    BATON_RETURN_IF_ERROR(CheckPost(regions_, options_.max_message_bytes, header, payload));
    BATON_RETURN_IF_ERROR(ledger_.Post(id));
    engine_->Submit(
        {.kind = NcclCommand::Kind::kPost,
         .post = {.transfer = id, .post_id = post_id, .header = header, .payload = payload}});
    return absl::OkStatus();
  }

  absl::Status Notify(TransferId id, std::span<const std::byte> bytes) override {
    BATON_RETURN_IF_ERROR(CheckNotify(bytes));
    BATON_RETURN_IF_ERROR(ledger_.CheckNotify(id, engine_->notifies_in_flight()));
    engine_->Submit(
        {.kind = NcclCommand::Kind::kNotify,
         .transfer = id,
         .bytes = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())});
    return absl::OkStatus();
  }

  void Flush(TransferId id) override {
    if (ledger_.CheckOpen(id).ok())
      engine_->Submit({.kind = NcclCommand::Kind::kFlush, .transfer = id});
  }

  void Release(TransferId id) override {
    if (!ledger_.Release(id)) return;
    engine_->Submit({.kind = NcclCommand::Kind::kRelease, .transfer = id});
  }

  void Poll(std::vector<KvEvent>* events, int max_events) override {
    BATON_CHECK_GT(max_events, 0);
    if (!polled_.empty()) {
      polled_.clear();
      engine_->RoomFreed();
    }
    engine_->TakeEvents(static_cast<size_t>(max_events), &polled_);
    for (NcclArrival& arrival : polled_) {
      if (!arrival.bytes.empty()) arrival.event.payload = arrival.bytes;
      ledger_.Account(arrival.event);
      events->push_back(arrival.event);
    }
  }

 private:
  const NcclTransportOptions options_;
  const UcxVersion version_;
  const cudaStream_t copies_;
  const std::unique_ptr<NcclEngine> engine_;
  RegionTable regions_;
  TransferLedger ledger_{options_.max_transfers, options_.max_posts_in_flight};
  std::vector<NcclArrival> polled_;  // backs the payloads of the last Poll
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclTransport>> CreateNcclTransport(
    const NcclTransportOptions& options, std::shared_ptr<Clock> clock) {
  BATON_RETURN_IF_ERROR(CheckOptions(options));
  BATON_ASSIGN_OR_RETURN(const UcxVersion version, LoadedNcclVersion());
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<NcclEngine> engine,
                         NcclEngine::Create(options, version, std::move(clock)));
  cudaStream_t copies = nullptr;
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(options.gpu), "cudaSetDevice"));
  BATON_RETURN_IF_ERROR(
      RuntimeStatus(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking), "a stream"));
  return std::make_unique<NcclEndpoint>(options, version, copies, std::move(engine));
}

}  // namespace baton::transport
