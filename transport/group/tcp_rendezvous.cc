#include "transport/group/tcp_rendezvous.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "transport/group/exchange_collectives.h"

namespace baton::transport {
namespace {

// Of the first call, in which the ranks' data connections are made.
constexpr Duration kFirstCallLimit = Duration::Seconds(10);
constexpr int kMaxAttempts = 100;

class TcpRendezvousImpl final : public TcpRendezvous {
 public:
  TcpRendezvousImpl(std::vector<std::string> addresses, FrameListener listener,
                    std::unique_ptr<ExchangeFactory> factory, std::shared_ptr<Clock> clock)
      : addresses_(std::move(addresses)),
        listener_(std::move(listener)),
        factory_(std::move(factory)),
        clock_(std::move(clock)) {}

  uint16_t port() const override { return listener_.port(); }
  void SetAddresses(std::vector<std::string> addresses) override {
    addresses_ = std::move(addresses);
  }

  absl::StatusOr<std::unique_ptr<Collectives>> Join(const GroupOptions& options) override {
    BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
    BATON_RETURN_IF_ERROR(CheckAddresses(options));
    FormationRequest request;
    request.options = options;
    request.addresses = addresses_;
    return JoinAgainAndAgain(&request);
  }

  absl::StatusOr<std::unique_ptr<Collectives>> Regroup(const GroupOptions& options,
                                                       const RegroupOptions& regroup,
                                                       const Collectives& before) override {
    BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
    Survivors survivors(before);
    FormationRequest request;
    request.options = options;
    request.options.absent_ranks.clear();
    // Who knew rank 0's address alone has learned the others' when the group formed.
    request.addresses = learned_addresses_;
    request.survivors = &survivors;
    request.regroup = regroup;
    return JoinAgainAndAgain(&request);
  }

  std::vector<int> Knocking() override {
    if (!last_options_.has_value()) return {};
    return KnockingRanks(*last_options_, &listener_, clock_.get());
  }

 private:
  absl::StatusOr<std::unique_ptr<Collectives>> JoinAgainAndAgain(FormationRequest* request) {
    const GroupOptions& options = request->options;
    last_options_ = options;
    request->deadline = clock_->Now() + options.timeout;
    absl::StatusOr<std::unique_ptr<Collectives>> group = absl::AbortedError("not tried");
    for (int attempt = 0; attempt < kMaxAttempts && absl::IsAborted(group.status()); ++attempt) {
      group = TryToJoin(request);
      if (clock_->Now() >= request->deadline) break;
    }
    if (!absl::IsAborted(group.status())) return group;
    return absl::DeadlineExceededError(
        absl::StrCat("group '", options.group_id, "' did not form within ",
                     options.timeout.millis(), " ms: ", group.status().message()));
  }

  absl::Status CheckAddresses(const GroupOptions& options) const {
    const size_t count = addresses_.size();
    const size_t ranks = static_cast<size_t>(options.world_size);
    if (count == ranks || (count == 1 && HostRank(options) == 0)) return absl::OkStatus();
    // Rank 0 need not be told where it is.
    if (count == 0 && options.rank == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "group '", options.group_id, "': ", count, " addresses for ", ranks,
        " ranks; give rank 0's, or one for each rank (needed where rank 0 is absent)"));
  }

  // ABORTED: worth another attempt.
  absl::StatusOr<std::unique_ptr<Collectives>> TryToJoin(FormationRequest* request) {
    BATON_ASSIGN_OR_RETURN(std::unique_ptr<FormedExchange> exchange, factory_->Create());
    request->last_generation = last_generation_;
    BATON_ASSIGN_OR_RETURN(request->data_address, exchange->Address());
    BATON_ASSIGN_OR_RETURN(Formed formed, FormGroup(*request, &listener_, clock_.get()));
    last_generation_ = std::max(last_generation_, formed.generation);
    const uint64_t generation = formed.generation;
    GroupOptions options = request->options;
    options.absent_ranks = AbsentRanks(options.world_size, formed.present);
    LearnAddresses(formed);
    BATON_RETURN_IF_ERROR(exchange->Connect(options.rank, std::move(formed), request->deadline));
    std::unique_ptr<Collectives> group =
        MakeExchangeCollectives(options, generation, std::move(exchange), clock_);
    // Who returns from it knows that all have come so far.
    Duration limit = std::min(kFirstCallLimit, request->deadline - clock_->Now());
    if (request->survivors != nullptr) limit = std::min(limit, request->regroup.patience * 2);
    const absl::Status status = group->Barrier(limit);
    if (!status.ok()) return absl::AbortedError(std::string(status.message()));
    return group;
  }

  void LearnAddresses(const Formed& formed) {
    learned_addresses_.resize(formed.addresses.size());
    for (size_t rank = 0; rank < formed.addresses.size(); ++rank) {
      if (!formed.addresses[rank].empty()) learned_addresses_[rank] = formed.addresses[rank];
    }
  }

  std::vector<std::string> addresses_;
  FrameListener listener_;
  const std::unique_ptr<ExchangeFactory> factory_;
  const std::shared_ptr<Clock> clock_;
  uint64_t last_generation_ = 0;
  std::optional<GroupOptions> last_options_;    // of the last Join or Regroup
  std::vector<std::string> learned_addresses_;  // [ranks], once a group was formed; empty: unknown
};

}  // namespace

absl::StatusOr<std::unique_ptr<TcpRendezvous>> CreateTcpRendezvous(
    const TcpRendezvousOptions& options, std::unique_ptr<ExchangeFactory> factory,
    std::shared_ptr<Clock> clock) {
  BATON_ASSIGN_OR_RETURN(FrameListener listener,
                         FrameListener::Listen(options.listen_ip, options.listen_port));
  return std::make_unique<TcpRendezvousImpl>(options.addresses, std::move(listener),
                                             std::move(factory), std::move(clock));
}

}  // namespace baton::transport
