#ifndef BATON_TRANSPORT_NCCL_NCCL_EXCHANGE_H_
#define BATON_TRANSPORT_NCCL_NCCL_EXCHANGE_H_

// The exchange between GPUs. Each call is agreed on through another exchange first (UCX, between
// the ranks' hosts): ranks tell each other the size of what they are going to send. So deadlines,
// dead ranks and calls that do not match are its business, and NCCL, which knows none of that, only
// ever gets calls that fit. Then each pair's bytes travel as one ncclSend and one ncclRecv of one
// group, on the stream that the rank's ops run on. A call returns when it stands in the stream.
// Only a few stand there at a time: with a lost rank the stream stops, and a host that gave it more
// and more work would be stopped by the driver, which knows no deadline.
//
// When NCCL does not finish in time its communicator is aborted, and the ranks ask each other once
// more through the other exchange, which names who does not answer.

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/group/tcp_rendezvous.h"
#include "transport/nccl/nccl_group.h"

namespace baton::transport {

class NcclExchange final : public FormedExchange, public DeviceExchange {
 public:
  static absl::StatusOr<std::unique_ptr<NcclExchange>> Create(
      const NcclGroupOptions& options, std::unique_ptr<FormedExchange> agreement,
      std::shared_ptr<Clock> clock);
  ~NcclExchange() override;

  absl::StatusOr<std::string> Address() const override;
  absl::Status Connect(int rank, Formed formed, Tick deadline) override;

  // Spans are memory of this rank's GPU, or pinned.
  absl::Status Run(const CallShape& shape, std::span<const SendSpan> send,
                   std::span<const RecvSpan> recv, const CallLimit& limit) override;
  void Abort(GroupFailure failure, uint64_t last_good_call) override {
    agreement_->Abort(std::move(failure), last_good_call);
  }
  void Ring() override { agreement_->Ring(); }
  std::vector<int> GoneRanks() override { return agreement_->GoneRanks(); }
  void MoveOn() override { agreement_->MoveOn(); }
  GroupState& state() override { return agreement_->state(); }
  std::unique_ptr<BufferOps> TakeBuffers() override;
  DeviceExchange* device() override { return this; }

  Exchange& OnHost() override { return *agreement_; }
  absl::Status Settle(const CallLimit& limit) override;
  void TrustSizes(bool trusted) override { trusted_ = trusted; }

 private:
  static constexpr size_t kMaxUnderWay = 8;  // calls

  NcclExchange(const NcclGroupOptions& options, std::unique_ptr<FormedExchange> agreement,
               std::shared_ptr<Clock> clock)
      : options_(options), clock_(std::move(clock)), agreement_(std::move(agreement)) {}

  // Peers' sizes in sent_bytes_; fails where they are not those of `recv`.
  absl::Status Agree(const CallShape& shape, std::span<const SendSpan> send,
                     std::span<const RecvSpan> recv, const CallLimit& limit);
  absl::Status Enqueue(std::span<const SendSpan> send, std::span<const RecvSpan> recv);
  absl::Status AwaitLaunch(const CallLimit& limit);
  absl::Status MarkEnd();
  // Until `done` (cudaSuccess or cudaErrorNotReady) is there.
  template <typename Done>
  absl::Status Await(const Done& done, const CallLimit& limit);
  absl::Status AwaitRoom(const CallLimit& limit);
  absl::Status Stalled(const CallLimit& limit);
  absl::Status AwaitCommunicator(Tick deadline);
  void AbortCommunicator();
  // Breaks the group: this rank's library has failed.
  absl::Status Break(const std::string& what);

  const NcclGroupOptions options_;
  const std::shared_ptr<Clock> clock_;
  const std::unique_ptr<FormedExchange> agreement_;
  ncclUniqueId id_ = {};
  ncclComm_t comm_ = nullptr;
  bool trusted_ = false;
  std::array<cudaEvent_t, kMaxUnderWay> ends_ = {};  // of the latest calls, in turn
  uint64_t enqueued_ = 0;                            // calls
  std::vector<int> comm_rank_;                       // by rank; -1: absent
  std::vector<uint64_t> mine_, theirs_;              // bytes of the call at hand, by rank
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_NCCL_NCCL_EXCHANGE_H_
