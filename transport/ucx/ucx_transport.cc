#include "transport/ucx/ucx_transport.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/region_table.h"
#include "transport/transfer_ledger.h"
#include "transport/ucx/ucx_engine.h"

namespace baton::transport {
namespace {

absl::Status CheckOptions(const UcxOptions& options) {
  if (options.tls.empty()) {
    return absl::InvalidArgumentError("ucx: tls is empty; name transports, e.g. 'sysv,tcp'");
  }
  if (options.max_posts_in_flight == 0 || options.max_transfers == 0 ||
      options.max_waiting_messages == 0 || options.max_message_bytes == 0 ||
      options.max_peers == 0) {
    return absl::InvalidArgumentError(
        "ucx: max_message_bytes, max_posts_in_flight, max_transfers, max_waiting_messages "
        "and max_peers must be at least 1");
  }
  const size_t least = StagingPool::RoundedBytes(options.max_message_bytes);
  if (options.staging_bytes < least) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ucx: staging_bytes is ", options.staging_bytes, "; at least ", least,
        " are needed for one message of max_message_bytes (", options.max_message_bytes, ")"));
  }
  if (options.keepalive_interval < Duration::Millis(1) ||
      options.connect_timeout < Duration::Millis(1) ||
      options.stall_timeout < Duration::Millis(1)) {
    return absl::InvalidArgumentError(
        "ucx: keepalive_interval, connect_timeout and stall_timeout must be at least 1 ms");
  }
  return absl::OkStatus();
}

// The loop thread's side: checks, counts what is in flight, and passes commands to the engine.
class UcxEndpoint final : public UcxTransport {
 public:
  UcxEndpoint(const UcxOptions& options, std::unique_ptr<UcxEngine> engine)
      : options_(options), engine_(std::move(engine)) {}

  ~UcxEndpoint() override {
    // Polled buffers first, then what may still be sending from the registered memory.
    polled_.clear();
    const std::map<RegionId, ucp_mem_h> memory = std::exchange(memory_, {});
    engine_->Stop();
    for (const auto& [region, handle] : memory) ucp_mem_unmap(engine_->context(), handle);
  }

  Capabilities capabilities() const override {
    return {.name = "ucx",
            .across_processes = true,
            .device_memory = false,
            .max_message_bytes = options_.max_message_bytes,
            .max_posts_in_flight = options_.max_posts_in_flight};
  }

  std::string address() const override { return engine_->address(); }
  UcxCounters counters() const override { return engine_->counters(); }
  uint64_t staging_in_use_bytes() const override { return engine_->staging_in_use_bytes(); }
  void SetWakeup(std::function<void()> wakeup) override { engine_->SetWakeup(std::move(wakeup)); }

  absl::StatusOr<RegionId> Register(std::span<std::byte> memory) override {
    BATON_ASSIGN_OR_RETURN(const RegionId region, regions_.Add(memory));
    ucp_mem_map_params_t params = {};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                        UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
    params.address = memory.data();
    params.length = memory.size();
    params.memory_type = UCS_MEMORY_TYPE_HOST;
    ucp_mem_h handle = nullptr;
    const ucs_status_t status = ucp_mem_map(engine_->context(), &params, &handle);
    if (status != UCS_OK) {
      regions_.Remove(region);
      return absl::ResourceExhaustedError(absl::StrCat(
          "Register: UCX cannot map ", memory.size(), " bytes: ", ucs_status_string(status),
          "; with RDMA, raise the limit of locked memory (ulimit -l)"));
    }
    memory_.emplace(region, handle);
    return region;
  }

  void Unregister(RegionId region) override {
    BATON_CHECK(regions_.Remove(region));
    auto it = memory_.find(region);
    ucp_mem_unmap(engine_->context(), it->second);
    memory_.erase(it);
  }

  absl::StatusOr<TransferId> Prepare(const std::string& peer_address) override {
    BATON_ASSIGN_OR_RETURN(const UcxAddress address, DecodeUcxAddress(version_, peer_address));
    BATON_ASSIGN_OR_RETURN(const TransferId id, ledger_.Open());
    engine_->Submit({.kind = UcxCommand::Kind::kOpen,
                     .transfer = id,
                     .bytes = peer_address,
                     .address = address});
    return id;
  }

  absl::Status Post(TransferId id, uint64_t post_id, const KvMessageHeader& header,
                    std::span<const std::byte> payload) override {
    BATON_RETURN_IF_ERROR(CheckPost(regions_, options_.max_message_bytes, header, payload));
    BATON_RETURN_IF_ERROR(ledger_.Post(id));
    ucp_mem_h memory = payload.empty() ? nullptr : memory_.at(*regions_.Find(payload));
    engine_->Submit({.kind = UcxCommand::Kind::kPost,
                     .transfer = id,
                     .post_id = post_id,
                     .header = header,
                     .payload = payload,
                     .memory = memory});
    return absl::OkStatus();
  }

  absl::Status Notify(TransferId id, std::span<const std::byte> bytes) override {
    BATON_RETURN_IF_ERROR(CheckNotify(bytes));
    BATON_RETURN_IF_ERROR(ledger_.CheckNotify(id, engine_->notifies_in_flight()));
    engine_->Submit(
        {.kind = UcxCommand::Kind::kNotify,
         .transfer = id,
         .bytes = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())});
    return absl::OkStatus();
  }

  void Release(TransferId id) override {
    if (!ledger_.Release(id)) return;
    engine_->Submit({.kind = UcxCommand::Kind::kRelease, .transfer = id});
  }

  void Poll(std::vector<KvEvent>* events, int max_events) override {
    BATON_CHECK_GT(max_events, 0);
    if (!polled_.empty()) {
      polled_.clear();
      engine_->RoomFreed();
    }
    engine_->TakeEvents(static_cast<size_t>(max_events), &polled_);
    for (const UcxArrival& arrival : polled_) {
      ledger_.Account(arrival.event);
      events->push_back(arrival.event);
    }
  }

 private:
  const UcxOptions options_;
  const UcxVersion version_ = LoadedUcxVersion();
  const std::unique_ptr<UcxEngine> engine_;
  RegionTable regions_;
  std::map<RegionId, ucp_mem_h> memory_;
  TransferLedger ledger_{options_.max_transfers, options_.max_posts_in_flight};
  std::vector<UcxArrival> polled_;  // backs the payloads of the last Poll
};

}  // namespace

absl::StatusOr<std::unique_ptr<UcxTransport>> CreateUcxTransport(const UcxOptions& options,
                                                                 std::shared_ptr<Clock> clock) {
  BATON_RETURN_IF_ERROR(CheckOptions(options));
  BATON_ASSIGN_OR_RETURN(std::unique_ptr<UcxEngine> engine,
                         UcxEngine::Create(options, std::move(clock)));
  return std::make_unique<UcxEndpoint>(options, std::move(engine));
}

}  // namespace baton::transport
