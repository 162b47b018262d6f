#include "transport/nccl/nccl_exchange.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/nccl/cuda_buffers.h"
#include "transport/nccl/nccl_status.h"

namespace baton::transport {
namespace {

// Without news the thread yields so long, and then sleeps for so many milliseconds at a time.
constexpr Duration kSpin = Duration::Micros(200);
constexpr int kSleepMs = 1;
// The part of a call in which ranks that NCCL left waiting ask each other who is there.
constexpr uint8_t kWhoIsThere = 255;
// Added to the part of a call on a GPU's memory: ranks of which one means the host's have differed.
constexpr uint8_t kOnDevice = 64;
constexpr char kAddressFormat[] = "nccl1\n";

}  // namespace

absl::StatusOr<std::unique_ptr<NcclExchange>> NcclExchange::Create(
    const NcclGroupOptions& options, std::unique_ptr<FormedExchange> agreement,
    std::shared_ptr<Clock> clock) {
  std::unique_ptr<NcclExchange> exchange(
      new NcclExchange(options, std::move(agreement), std::move(clock)));
  BATON_RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&exchange->id_), "ncclGetUniqueId"));
  return exchange;
}

NcclExchange::~NcclExchange() {
  (void)cudaSetDevice(options_.gpu);
  if (comm_ != nullptr) {
    // What is under way may wait for a rank that is lost.
    if (state().broken()) AbortCommunicator();
    if (comm_ != nullptr) (void)ncclCommDestroy(comm_);
  }
  for (const cudaEvent_t end : ends_) {
    if (end != nullptr) (void)cudaEventDestroy(end);
  }
}

// In front of the other exchange's address this rank's unique id, of which one will be used.
absl::StatusOr<std::string> NcclExchange::Address() const {
  BATON_ASSIGN_OR_RETURN(const std::string inner, agreement_->Address());
  return absl::StrCat(kAddressFormat, std::string(id_.internal, sizeof(id_.internal)), inner);
}

absl::Status NcclExchange::Connect(int rank, Formed formed, Tick deadline) {
  const size_t format_bytes = std::strlen(kAddressFormat);
  const size_t front = format_bytes + sizeof(id_.internal);
  comm_rank_.assign(formed.data_addresses.size(), -1);
  const std::vector<int> present = formed.present;
  ncclUniqueId id = {};
  for (size_t i = 0; i < present.size(); ++i) {
    const size_t at = static_cast<size_t>(present[i]);
    std::string& address = formed.data_addresses[at];
    if (address.size() < front || address.compare(0, format_bytes, kAddressFormat) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          formed.names[at], " does not exchange data by NCCL; start all ranks with one backend"));
    }
    // The lowest rank's id.
    if (i == 0) std::memcpy(id.internal, address.data() + format_bytes, sizeof(id.internal));
    address.erase(0, front);
    comm_rank_[at] = static_cast<int>(i);
  }
  mine_.resize(comm_rank_.size());
  theirs_.resize(comm_rank_.size());
  BATON_RETURN_IF_ERROR(agreement_->Connect(rank, std::move(formed), deadline));
  BATON_RETURN_IF_ERROR(RuntimeStatus(cudaSetDevice(options_.gpu), "cudaSetDevice"));
  for (cudaEvent_t& end : ends_) {
    BATON_RETURN_IF_ERROR(
        RuntimeStatus(cudaEventCreateWithFlags(&end, cudaEventDisableTiming), "an event"));
  }
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t begun = ncclCommInitRankConfig(&comm_, static_cast<int>(present.size()), id,
                                                    comm_rank_[static_cast<size_t>(rank)], &config);
  BATON_RETURN_IF_ERROR(NcclStatus(begun, "ncclCommInitRankConfig"));
  return AwaitCommunicator(deadline);
}

absl::Status NcclExchange::AwaitCommunicator(Tick deadline) {
  while (true) {  // until the deadline
    ncclResult_t result = ncclSuccess;
    BATON_RETURN_IF_ERROR(
        NcclStatus(ncclCommGetAsyncError(comm_, &result), "ncclCommGetAsyncError"));
    if (result == ncclSuccess) return absl::OkStatus();
    absl::Status failure = NcclStatus(result, "NCCL cannot connect the ranks");
    if (failure.ok() && state().broken()) failure = state().failure().status;
    if (failure.ok() && clock_->Now() >= deadline) {
      failure = absl::DeadlineExceededError("NCCL did not connect the ranks in time");
    }
    if (!failure.ok()) {
      AbortCommunicator();
      return absl::AbortedError(std::string(failure.message()));
    }
    poll(nullptr, 0, kSleepMs);
  }
}

void NcclExchange::AbortCommunicator() {
  if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
}

absl::Status NcclExchange::Break(const std::string& what) {
  AbortCommunicator();
  const std::string message = absl::StrCat(state().Name(state().rank()), ": ", what);
  agreement_->Abort({absl::InternalError(message), {}}, 0);
  return state().failure().status;
}

absl::Status NcclExchange::Run(const CallShape& shape, std::span<const SendSpan> send,
                               std::span<const RecvSpan> recv, const CallLimit& limit) {
  absl::Status status;
  if (!trusted_) {
    status = Agree(shape, send, recv, limit);
  } else if (state().broken()) {
    status = state().failure().status;
  }
  if (status.ok()) status = AwaitRoom(limit);
  if (status.ok()) status = Enqueue(send, recv);
  if (status.ok()) status = AwaitLaunch(limit);
  if (status.ok()) status = MarkEnd();
  if (!status.ok()) AbortCommunicator();
  return status;
}

absl::Status NcclExchange::Settle(const CallLimit& limit) {
  (void)cudaSetDevice(options_.gpu);
  const absl::Status status = Await([this] { return cudaStreamQuery(options_.stream); }, limit);
  if (status.ok()) return status;
  AbortCommunicator();
  // What the abort has freed comes to its end.
  (void)cudaStreamSynchronize(options_.stream);
  return status;
}

// A call that begins when kMaxUnderWay others have not ended waits for the first of them.
absl::Status NcclExchange::AwaitRoom(const CallLimit& limit) {
  if (enqueued_ < kMaxUnderWay) return absl::OkStatus();
  (void)cudaSetDevice(options_.gpu);
  const cudaEvent_t end = ends_[enqueued_ % kMaxUnderWay];
  return Await([end] { return cudaEventQuery(end); }, limit);
}

absl::Status NcclExchange::Agree(const CallShape& shape, std::span<const SendSpan> send,
                                 std::span<const RecvSpan> recv, const CallLimit& limit) {
  std::vector<SendSpan> tell(send.size());
  std::vector<RecvSpan> hear(recv.size());
  for (size_t rank = 0; rank < send.size(); ++rank) {
    mine_[rank] = send[rank].size();
    tell[rank] = std::as_bytes(std::span(&mine_[rank], 1));
    hear[rank] = std::as_writable_bytes(std::span(&theirs_[rank], 1));
  }
  CallShape on_device = shape;
  on_device.part += kOnDevice;
  BATON_RETURN_IF_ERROR(agreement_->Run(on_device, tell, hear, limit));
  for (size_t rank = 0; rank < recv.size(); ++rank) {
    const bool is_peer = comm_rank_[rank] >= 0 && static_cast<int>(rank) != state().rank();
    if (!is_peer || theirs_[rank] == recv[rank].size()) continue;
    agreement_->Abort(DifferentSizes(state(), state().entered(), shape, static_cast<int>(rank),
                                     theirs_[rank], recv[rank].size()),
                      0);
    return state().failure().status;
  }
  return absl::OkStatus();
}

absl::Status NcclExchange::Enqueue(std::span<const SendSpan> send, std::span<const RecvSpan> recv) {
  (void)cudaSetDevice(options_.gpu);  // existed when the group was formed
  if (comm_ == nullptr) return Break("its communicator is gone");
  std::unique_lock<std::mutex> launches;
  if (options_.launches != nullptr) launches = std::unique_lock(*options_.launches);
  absl::Status status = NcclStatus(ncclGroupStart(), "ncclGroupStart");
  for (size_t rank = 0; rank < send.size() && status.ok(); ++rank) {
    const int peer = comm_rank_[rank];
    if (peer < 0 || static_cast<int>(rank) == state().rank()) continue;
    if (!send[rank].empty()) {
      status = NcclStatus(
          ncclSend(send[rank].data(), send[rank].size(), ncclInt8, peer, comm_, options_.stream),
          "ncclSend");
    }
    if (!recv[rank].empty() && status.ok()) {
      status = NcclStatus(
          ncclRecv(recv[rank].data(), recv[rank].size(), ncclInt8, peer, comm_, options_.stream),
          "ncclRecv");
    }
  }
  const absl::Status ended = NcclStatus(ncclGroupEnd(), "ncclGroupEnd");
  if (launches.owns_lock()) launches.unlock();
  if (status.ok()) status = ended;
  return status.ok() ? status : Break(std::string(status.message()));
}

// NCCL may still be giving the stream its work when a call has returned, on a thread of its own:
// what is recorded or asked of the stream before it is through knows nothing of that work.
absl::Status NcclExchange::AwaitLaunch(const CallLimit& limit) {
  const uint64_t call = state().entered();
  while (true) {  // until the deadline
    ncclResult_t result = ncclSuccess;
    (void)ncclCommGetAsyncError(comm_, &result);
    if (result == ncclSuccess) return absl::OkStatus();
    if (state().BrokenFor(call)) return state().failure().status;
    // A peer's end shows here a moment before the reason comes from its host.
    if (result != ncclInProgress || clock_->Now() >= limit.deadline) return Stalled(limit);
    sched_yield();
  }
}

absl::Status NcclExchange::MarkEnd() {
  const absl::Status status = RuntimeStatus(
      cudaEventRecord(ends_[enqueued_ % kMaxUnderWay], options_.stream), "cudaEventRecord");
  if (!status.ok()) return Break(std::string(status.message()));
  ++enqueued_;
  return status;
}

template <typename Done>
absl::Status NcclExchange::Await(const Done& done, const CallLimit& limit) {
  const Tick begun = clock_->Now();
  const uint64_t call = state().entered();
  while (true) {  // until the deadline
    const cudaError_t state_now = done();
    if (state_now == cudaSuccess) return absl::OkStatus();
    if (state_now != cudaErrorNotReady) return Break(cudaGetErrorString(state_now));
    if (state().BrokenFor(call)) return state().failure().status;
    ncclResult_t result = ncclSuccess;
    if (comm_ != nullptr) (void)ncclCommGetAsyncError(comm_, &result);
    const absl::Status failure = NcclStatus(result, "NCCL");
    const Tick now = clock_->Now();
    // A peer's end shows here a moment before the reason comes from its host.
    if (!failure.ok() || now >= limit.deadline) return Stalled(limit);
    if (now - begun < kSpin) {
      sched_yield();
    } else {
      poll(nullptr, 0, kSleepMs);
    }
  }
}

absl::Status NcclExchange::Stalled(const CallLimit& limit) {
  AbortCommunicator();
  const CallShape ask{.kind = CallKind::kBarrier, .part = kWhoIsThere};
  const std::vector<SendSpan> nothing(comm_rank_.size());
  const std::vector<RecvSpan> no_answer(comm_rank_.size());
  const CallLimit soon{clock_->Now() + Duration::Nanos(limit.timeout.nanos() / 2), limit.timeout};
  BATON_RETURN_IF_ERROR(agreement_->Run(ask, nothing, no_answer, soon));
  return Break(absl::StrCat("NCCL did not finish within ", limit.timeout.millis(),
                            " ms, though every rank answers"));
}

std::unique_ptr<BufferOps> NcclExchange::TakeBuffers() {
  return MakeCudaBuffers(options_.gpu, options_.stream, options_.sum);
}

}  // namespace baton::transport
