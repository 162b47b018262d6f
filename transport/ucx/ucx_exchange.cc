#include "transport/ucx/ucx_exchange.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

constexpr unsigned kCallId = 1;
// UCX looks a message's id up before it checks its range; see ucx_engine.cc.
constexpr unsigned kHighestId = 65535;
constexpr size_t kEagerBytes = 16384;
constexpr int kProgressRounds = 64;
// Without news, letting others run; then the thread sleeps. A time and not a count: on a busy
// machine one yield can cost a time slice, and who sleeps is woken before who yields gets its turn.
constexpr Duration kSpin = Duration::Micros(50);
constexpr Duration kLongestSleep = Duration::Millis(100);
// A peer's UCX connection may end a moment before the reason comes over its control connection.
constexpr Duration kErrorPatience = Duration::Millis(300);
constexpr Duration kCloseLimit = Duration::Seconds(2);
// UCX's graceful end over TCP waits for a peer to drive UCX, which it may never do again.
constexpr Duration kGracefulLimit = Duration::Millis(100);
constexpr int kCloseRounds = 10'000'000;  // where the clock stands still

}  // namespace

absl::StatusOr<std::unique_ptr<UcxExchange>> UcxExchange::Create(const UcxOptions& options,
                                                                 std::shared_ptr<Clock> clock) {
  std::unique_ptr<UcxExchange> exchange(new UcxExchange(std::move(clock)));
  BATON_RETURN_IF_ERROR(exchange->Start(options));
  return exchange;
}

absl::Status UcxExchange::Start(const UcxOptions& options) {
  BATON_ASSIGN_OR_RETURN(context_, CreateUcxContext(options));
  BATON_ASSIGN_OR_RETURN(worker_, CreateUcxWorker(context_.get()));
  for (const unsigned id : {kCallId, kHighestId}) {
    ucp_am_handler_param_t param = {};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = id;
    param.cb = &OnMessage;
    param.arg = this;
    BATON_RETURN_IF_ERROR(UcxStatus(ucp_worker_set_am_recv_handler(worker_.get(), &param),
                                    "ucp_worker_set_am_recv_handler"));
  }
  return UcxStatus(ucp_worker_get_efd(worker_.get(), &worker_fd_), "ucp_worker_get_efd");
}

absl::StatusOr<std::string> UcxExchange::Address() const {
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  const ucs_status_t status = ucp_worker_get_address(worker_.get(), &address, &bytes);
  if (status != UCS_OK) return UcxStatus(status, "ucp_worker_get_address");
  // The release in front: others do not understand the rest.
  const UcxVersion version = LoadedUcxVersion();
  std::string out = absl::StrCat(version.major, ".", version.minor, "\n");
  out.append(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(worker_.get(), address);
  return out;
}

absl::Status UcxExchange::Connect(int rank, Formed formed, Tick) {
  key_ = formed.key;
  state_ = std::make_shared<GroupState>(rank, formed.names);
  BATON_ASSIGN_OR_RETURN(control_, GroupControl::Start(state_, std::move(formed.sockets), clock_));
  const UcxVersion version = LoadedUcxVersion();
  const std::string prefix = absl::StrCat(version.major, ".", version.minor, "\n");
  for (const int peer_rank : formed.present) {
    if (peer_rank == rank) continue;
    const std::string& address = formed.data_addresses[static_cast<size_t>(peer_rank)];
    if (address.compare(0, prefix.size(), prefix) != 0) {
      const std::string theirs = address.substr(0, std::min<size_t>(address.find('\n'), 16));
      return absl::FailedPreconditionError(
          absl::StrCat(state_->Name(peer_rank), " runs UCX '", theirs, "', this rank ",
                       prefix.substr(0, prefix.size() - 1), "; install one release on all ranks"));
    }
    Peer& peer = peers_[peer_rank];
    peer.exchange = this;
    peer.rank = peer_rank;
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(address.data() + prefix.size());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {&OnPeerError, &peer};
    const ucs_status_t status = ucp_ep_create(worker_.get(), &params, &peer.endpoint);
    if (status != UCS_OK) {
      peer.endpoint = nullptr;
      return absl::UnavailableError(absl::StrCat("UCX cannot connect to ", state_->Name(peer_rank),
                                                 ": ", ucs_status_string(status),
                                                 "; both sides need a transport in common"));
    }
  }
  return absl::OkStatus();
}

UcxExchange::~UcxExchange() {
  // Good-bye first: what follows is then no surprise to the others.
  control_.reset();
  Close();
  worker_.reset();
}

absl::Status UcxExchange::Run(const CallShape& shape, std::span<const SendSpan> send,
                              std::span<const RecvSpan> recv, const CallLimit& limit) {
  const uint64_t call = state_->Enter();
  if (state_->BrokenFor(call) || is_closed_) {
    Close();
    return state_->failure().status;
  }
  Begin(call, shape, recv);
  for (auto& [rank, peer] : peers_) Take(&peer);
  for (auto& [rank, peer] : peers_) Send(&peer, send[static_cast<size_t>(rank)]);
  const absl::Status status = AwaitAll(limit);
  recv_ = {};
  if (!status.ok()) Close();
  return status;
}

// First whom this rank has told, then whether others have told it: of two that tell each other, one
// at least hears of it in time.
std::vector<int> UcxExchange::GoneRanks() {
  bool knows_all = control_->CatchUp();
  std::vector<int> gone = state_->gone();
  knows_all = control_->CatchUp() && knows_all;
  const int self = state_->rank();
  const std::vector<int> now = state_->gone();
  if (!knows_all || std::find(now.begin(), now.end(), self) != now.end()) gone.push_back(self);
  std::sort(gone.begin(), gone.end());
  gone.erase(std::unique(gone.begin(), gone.end()), gone.end());
  return gone;
}

void UcxExchange::Begin(uint64_t call, const CallShape& shape, std::span<const RecvSpan> recv) {
  call_ = call;
  shape_ = shape;
  recv_ = recv;
  unsent_ = unreceived_ = static_cast<int>(peers_.size());
  has_failed_ = false;
  next_report_ = Tick();
  for (auto& [rank, peer] : peers_) {
    peer.is_sent = peer.is_received = peer.has_arrived = false;
  }
}

void UcxExchange::Send(Peer* peer, SendSpan bytes) {
  peer->header = {.group_key = key_,
                  .call = call_,
                  .bytes = shape_.bytes,
                  .payload_bytes = bytes.size(),
                  .source_rank = state_->rank(),
                  .root = shape_.root,
                  .kind = static_cast<uint8_t>(shape_.kind),
                  .part = shape_.part};
  if (!peer->failure.ok()) return;  // AwaitAll deals with it
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.send = &OnSent;
  param.user_data = peer;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  param.flags = bytes.size() <= kEagerBytes ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  ucs_status_ptr_t request =
      ucp_am_send_nbx(peer->endpoint, kCallId, &peer->header, sizeof(peer->header), bytes.data(),
                      bytes.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) return FinishSend(peer, UCS_PTR_STATUS(request));
  ++operations_;
}

void UcxExchange::OnSent(void* request, ucs_status_t status, void* user_data) {
  ucp_request_free(request);
  Peer* peer = static_cast<Peer*>(user_data);
  --peer->exchange->operations_;
  peer->exchange->FinishSend(peer, status);
}

void UcxExchange::FinishSend(Peer* peer, ucs_status_t status) {
  peer->is_sent = true;
  --unsent_;
  if (status == UCS_OK) return;
  has_failed_ = true;
  FailPeer(peer, status, "sending failed");
}

ucs_status_t UcxExchange::OnMessage(void* argument, const void* header, size_t header_length,
                                    void* data, size_t length, const ucp_am_recv_param_t* param) {
  UcxExchange* exchange = static_cast<UcxExchange*>(argument);
  CallHeader call;
  if (header == nullptr || header_length != sizeof(call)) {
    ++exchange->malformed_messages_;
    return UCS_OK;
  }
  std::memcpy(&call, header, sizeof(call));
  return exchange->Arrive(call, data, length, param);
}

// Keeps the message until it is taken; UCS_OK drops it.
ucs_status_t UcxExchange::Arrive(const CallHeader& header, void* data, size_t length,
                                 const ucp_am_recv_param_t* param) {
  const auto known = peers_.find(header.source_rank);
  const bool is_large = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const bool is_due = header.call == call_ || header.call == call_ + 1;
  if (header.group_key != key_ || known == peers_.end() || !is_due ||
      header.payload_bytes != length || is_large != (length > kEagerBytes)) {
    ++malformed_messages_;
    return UCS_OK;
  }
  Peer& peer = known->second;
  std::optional<Arrival>& slot = peer.arrivals[header.call % 2];
  if (slot.has_value() || (header.call == call_ && peer.has_arrived)) {
    ++malformed_messages_;
    return UCS_OK;
  }
  Arrival& arrival = slot.emplace();
  arrival.header = header;
  arrived_.push_back(&peer);
  if (is_large) {
    arrival.descriptor = data;
    return UCS_INPROGRESS;
  }
  const std::byte* bytes = static_cast<const std::byte*>(data);
  arrival.bytes.assign(bytes, bytes + length);
  return UCS_OK;
}

// Takes the peer's message, if it has come and is of this call.
void UcxExchange::Take(Peer* peer) {
  std::optional<Arrival>& slot = peer->arrivals[call_ % 2];
  if (!slot.has_value()) return;
  const Arrival arrival = *std::move(slot);
  slot.reset();
  peer->has_arrived = true;
  const CallHeader& header = arrival.header;
  const CallShape theirs{static_cast<CallKind>(header.kind), header.part, header.root,
                         header.bytes};
  const RecvSpan into = recv_[static_cast<size_t>(peer->rank)];
  if (theirs != shape_ || header.payload_bytes != into.size()) {
    if (!fault_.has_value()) {
      fault_ = theirs != shape_ ? DifferentCalls(*state_, call_, shape_, peer->rank, theirs)
                                : DifferentSizes(*state_, call_, shape_, peer->rank,
                                                 header.payload_bytes, into.size());
    }
    if (arrival.descriptor != nullptr) ucp_am_data_release(worker_.get(), arrival.descriptor);
    return;
  }
  if (arrival.descriptor == nullptr) {
    std::copy(arrival.bytes.begin(), arrival.bytes.end(), into.begin());
    return FinishReceive(peer, UCS_OK);
  }
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.recv_am = &OnReceived;
  param.user_data = peer;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_.get(), arrival.descriptor, into.data(), into.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) return FinishReceive(peer, UCS_PTR_STATUS(request));
  ++operations_;
}

void UcxExchange::OnReceived(void* request, ucs_status_t status, size_t, void* user_data) {
  ucp_request_free(request);
  Peer* peer = static_cast<Peer*>(user_data);
  --peer->exchange->operations_;
  peer->exchange->FinishReceive(peer, status);
}

void UcxExchange::FinishReceive(Peer* peer, ucs_status_t status) {
  peer->is_received = true;
  --unreceived_;
  if (status == UCS_OK) return;
  has_failed_ = true;
  FailPeer(peer, status, "receiving failed");
}

void UcxExchange::OnPeerError(void* argument, ucp_ep_h, ucs_status_t status) {
  Peer* peer = static_cast<Peer*>(argument);
  peer->exchange->FailPeer(peer, status, "the connection was lost");
}

void UcxExchange::FailPeer(Peer* peer, ucs_status_t status, const char* what) {
  if (!peer->failure.ok()) return;
  peer->failure = UcxStatus(status, what);
  peer_failed_at_ = std::min(peer_failed_at_, clock_->Now());
}

absl::Status UcxExchange::AwaitAll(const CallLimit& limit) {
  Tick idle_since = clock_->Now();
  while (true) {  // until the deadline
    int rounds = 0;
    while (rounds < kProgressRounds && ucp_worker_progress(worker_.get()) != 0) ++rounds;
    while (!arrived_.empty()) {
      Peer* const peer = arrived_.back();
      arrived_.pop_back();
      Take(peer);
    }
    if (IsDone()) {
      Flush(limit);
      return absl::OkStatus();
    }
    BATON_RETURN_IF_ERROR(Check(limit));
    const Tick now = clock_->Now();
    if (rounds > 0) idle_since = now;
    if (now - idle_since < kSpin) {
      sched_yield();
      continue;
    }
    Sleep(limit);
    idle_since = clock_->Now();
  }
}

// A small message counts as sent when UCX has it; nobody drives UCX until the next call, so see
// that the kernel has it too.
void UcxExchange::Flush(const CallLimit& limit) {
  ucp_request_param_t param = {};
  ucs_status_ptr_t request = ucp_worker_flush_nbx(worker_.get(), &param);
  if (!UCS_PTR_IS_PTR(request)) return;
  while (ucp_request_check_status(request) == UCS_INPROGRESS && !state_->BrokenFor(call_) &&
         clock_->Now() < limit.deadline) {
    if (ucp_worker_progress(worker_.get()) == 0) sched_yield();
  }
  ucp_request_free(request);
}

absl::Status UcxExchange::Check(const CallLimit& limit) {
  if (fault_.has_value()) control_->Break(*fault_, 0);
  if (state_->BrokenFor(call_)) return state_->failure().status;
  const Tick now = clock_->Now();
  if (now >= limit.deadline) {
    // It may be this rank that was away, and the others have long said so.
    control_->CatchUp();
    if (state_->BrokenFor(call_)) return state_->failure().status;
    // Reports come every quarter of the timeout.
    const Tick since = now + Duration::Nanos(-limit.timeout.nanos() / 2);
    control_->Break(
        SilentRanks(*state_, shape_, call_, state_->Suspects(Waiting(), call_, since), limit), 0);
    return state_->failure().status;
  }
  if (now - peer_failed_at_ >= kErrorPatience) {
    for (const auto& [rank, peer] : peers_) {
      if (peer.failure.ok()) continue;
      control_->Break({absl::UnavailableError(
                           absl::StrCat("lost ", state_->Name(rank), ": ", peer.failure.message())),
                       {rank}},
                      0);
      return state_->failure().status;
    }
  }
  if (next_report_ == Tick()) {
    next_report_ = now + limit.timeout / 4;
  } else if (now >= next_report_) {
    next_report_ = now + limit.timeout / 4;
    control_->TellWaiting(call_, Waiting());
  }
  return absl::OkStatus();
}

std::vector<int> UcxExchange::Waiting() const {
  std::vector<int> ranks;
  for (const auto& [rank, peer] : peers_) {
    if (!peer.has_arrived) ranks.push_back(rank);
  }
  if (!ranks.empty()) return ranks;
  for (const auto& [rank, peer] : peers_) {
    if (!peer.is_received || !peer.is_sent) ranks.push_back(rank);
  }
  return ranks;
}

void UcxExchange::Sleep(const CallLimit& limit) {
  // UCX refuses to arm while it has something to do.
  if (ucp_worker_arm(worker_.get()) != UCS_OK) return;
  const Duration left = std::min(limit.deadline - clock_->Now(), kLongestSleep);
  pollfd fds[2] = {{worker_fd_, POLLIN, 0}, {control_->broken_fd(), POLLIN, 0}};
  // In the kernel's milliseconds, rounded up.
  poll(fds, 2, static_cast<int>(std::max<int64_t>(0, (left.nanos() + 999'999) / 1'000'000)));
}

// After it UCX touches no buffer of a caller. Bounded, so that a hanging fabric holds up nobody.
void UcxExchange::Close() {
  if (std::exchange(is_closed_, true)) return;
  for (auto& [rank, peer] : peers_) {
    for (std::optional<Arrival>& arrival : peer.arrivals) {
      if (arrival.has_value() && arrival->descriptor != nullptr) {
        ucp_am_data_release(worker_.get(), arrival->descriptor);
      }
      arrival.reset();
    }
  }
  // Graceful where nothing has failed: what was sent arrives.
  const bool by_force = operations_ > 0 || (state_ != nullptr && state_->broken());
  std::vector<ucs_status_ptr_t> closing;
  for (auto& [rank, peer] : peers_) {
    if (peer.endpoint == nullptr) continue;
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = by_force || !peer.failure.ok() ? UCP_EP_CLOSE_FLAG_FORCE : 0;
    ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(peer.endpoint, nullptr), &param);
    if (UCS_PTR_IS_PTR(request)) closing.push_back(request);
  }
  const Tick end = clock_->Now() + (by_force ? kCloseLimit : kGracefulLimit);
  for (int round = 0; round < kCloseRounds && clock_->Now() < end; ++round) {
    ucp_worker_progress(worker_.get());
    std::erase_if(closing, [](ucs_status_ptr_t request) {
      if (ucp_request_check_status(request) == UCS_INPROGRESS) return false;
      ucp_request_free(request);
      return true;
    });
    if (closing.empty() && operations_ == 0) break;
    sched_yield();
  }
  for (ucs_status_ptr_t request : closing) ucp_request_free(request);
}

}  // namespace baton::transport
