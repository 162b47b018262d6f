#include "transport/ucx/ucx_engine.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "transport/ucx/ucx_host.h"

namespace baton::transport {
namespace {

// UCX looks a message's id up before it checks its range: a handler for the highest id makes the
// table cover every id that can arrive.
constexpr unsigned kHighestId = 65535;

constexpr int kProgressRounds = 64;  // before commands get their turn
constexpr int kSpinRounds = 100;     // without work before the thread sleeps: some 10 us
constexpr Duration kCheckInterval = Duration::Millis(200);
constexpr Duration kLongestSleep = Duration::Seconds(5);
constexpr int kMaxCloseRounds = 400;  // of a millisecond
constexpr Duration kCloseLimit = Duration::Seconds(2);
constexpr Duration kFlushLimit = Duration::Seconds(1);

}  // namespace

// --- the owner's side

UcxEngine::UcxEngine(const UcxOptions& options, std::shared_ptr<Clock> clock)
    : options_(options), clock_(std::move(clock)), staging_(options.staging_bytes) {}

absl::StatusOr<std::unique_ptr<UcxEngine>> UcxEngine::Create(const UcxOptions& options,
                                                             std::shared_ptr<Clock> clock) {
  std::unique_ptr<UcxEngine> engine(new UcxEngine(options, std::move(clock)));
  BATON_RETURN_IF_ERROR(engine->Start());
  return engine;
}

absl::Status UcxEngine::Start() {
  BATON_ASSIGN_OR_RETURN(context_, CreateUcxContext(options_));
  BATON_ASSIGN_OR_RETURN(worker_, CreateUcxWorker(context_.get()));
  BATON_RETURN_IF_ERROR(SetHandlers());
  BATON_RETURN_IF_ERROR(
      UcxStatus(ucp_worker_get_efd(worker_.get(), &worker_fd_), "ucp_worker_get_efd"));
  BATON_RETURN_IF_ERROR(Listen());
  command_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (command_fd_ < 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "eventfd: ", std::strerror(errno), "; raise the limit of open files (ulimit -n)"));
  }
  thread_.emplace("baton-ucx", [this] { Run(); });
  return absl::OkStatus();
}

absl::Status UcxEngine::SetHandlers() {
  const std::pair<unsigned, ucp_am_recv_callback_t> handlers[] = {
      {kUcxDataId, &OnData}, {kUcxNotifyId, &OnNotify}, {kHighestId, &OnUnknown}};
  for (const auto& [id, callback] : handlers) {
    ucp_am_handler_param_t param = {};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = id;
    param.cb = callback;
    param.arg = this;
    BATON_RETURN_IF_ERROR(UcxStatus(ucp_worker_set_am_recv_handler(worker_.get(), &param),
                                    "ucp_worker_set_am_recv_handler"));
  }
  return absl::OkStatus();
}

absl::Status UcxEngine::Listen() {
  UcxAddress address;
  IpAddress bind_ip;  // 0.0.0.0
  BATON_ASSIGN_OR_RETURN(interfaces_, LocalInterfaces(options_.net_devices));
  if (options_.listen_ip.empty()) {
    for (const IpInterface& interface : interfaces_) address.ips.push_back(interface.address);
  } else {
    BATON_ASSIGN_OR_RETURN(bind_ip, ParseIp(options_.listen_ip));
    address.ips.push_back(bind_ip);
  }
  const SocketAddress bind_to = ToSocketAddress(bind_ip, options_.listen_port);
  ucp_listener_params_t params = {};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {bind_to.get(), bind_to.length};
  params.conn_handler = {&OnConnection, this};
  ucs_status_t status = ucp_listener_create(worker_.get(), &params, &listener_);
  if (status != UCS_OK) {
    listener_ = nullptr;
    return absl::FailedPreconditionError(absl::StrCat(
        "UCX cannot listen on ", options_.listen_ip.empty() ? "0.0.0.0" : options_.listen_ip, ":",
        options_.listen_port, ": ", ucs_status_string(status),
        "; set listen_ip to an address of this host and listen_port to a free port (0: any)"));
  }
  ucp_listener_attr_t attributes = {};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(listener_, &attributes);
  if (status != UCS_OK) return UcxStatus(status, "ucp_listener_query");
  host_id_ = HostId();
  address.host_id = host_id_;
  address.incarnation = RandomIncarnation();
  port_ = PortOf(attributes.sockaddr);
  address.port = port_;
  address_ = EncodeUcxAddress(LoadedUcxVersion(), address);
  return absl::OkStatus();
}

UcxEngine::~UcxEngine() {
  Stop();
  if (command_fd_ >= 0) close(command_fd_);
}

void UcxEngine::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    wakeup_.reset();
  }
  has_commands_ = true;
  if (thread_.has_value()) {
    WakeThread();
    thread_->Join();
  }
  if (listener_ != nullptr) ucp_listener_destroy(std::exchange(listener_, nullptr));
  worker_.reset();
}

void UcxEngine::SetWakeup(std::function<void()> wakeup) {
  std::lock_guard<std::mutex> lock(mutex_);
  wakeup_ = std::make_shared<const std::function<void()>>(std::move(wakeup));
}

void UcxEngine::Submit(UcxCommand command) {
  if (command.kind == UcxCommand::Kind::kNotify) ++notifies_in_flight_;
  bool first = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    first = commands_.empty();
    commands_.push_back(std::move(command));
    has_commands_ = true;
  }
  if (first) WakeThread();
}

void UcxEngine::TakeEvents(size_t max, std::vector<UcxArrival>* out) {
  bool took_staging = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < max && !events_.empty(); ++i) {
      took_staging |= static_cast<bool>(events_.front().buffer);
      out->push_back(std::move(events_.front()));
      events_.pop_front();
    }
  }
  // Another Poll is due, to free what this one gives out.
  if (took_staging && starved_) WakeOwner();
}

void UcxEngine::RoomFreed() {
  if (starved_) WakeThread();
}

UcxCounters UcxEngine::counters() const {
  return {.malformed_messages = malformed_messages_,
          .dropped_messages = dropped_messages_,
          .failed_receives = failed_receives_,
          .peers_lost = peers_lost_};
}

void UcxEngine::WakeOwner() {
  std::shared_ptr<const std::function<void()>> wakeup;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wakeup = wakeup_;
  }
  if (wakeup && *wakeup) (*wakeup)();
}

void UcxEngine::WakeThread() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is awake anyway.
  [[maybe_unused]] const ssize_t written = write(command_fd_, &one, sizeof(one));
}

// --- the progress thread

void UcxEngine::Run() {
  int idle_rounds = 0;
  while (RunCommands()) {
    const bool worked = Progress();
    AcceptPeers();
    CheckStalls();
    CloseFailedPeers();
    StartReceives();
    ReapClosing();
    const bool told = !fresh_.empty();
    PublishEvents();
    idle_rounds = worked || told ? 0 : idle_rounds + 1;
    if (idle_rounds < kSpinRounds) continue;
    Sleep();
    idle_rounds = 0;
  }
  ShutDown();
}

// False when the owner wants the thread to end.
bool UcxEngine::RunCommands() {
  if (!has_commands_) return true;
  std::vector<UcxCommand> commands;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return false;
    commands.swap(commands_);
    has_commands_ = false;
  }
  for (UcxCommand& command : commands) Execute(std::move(command));
  return true;
}

void UcxEngine::Execute(UcxCommand command) {
  switch (command.kind) {
    case UcxCommand::Kind::kOpen:
      return Open(command);
    case UcxCommand::Kind::kPost:
    case UcxCommand::Kind::kNotify:
      return StartSend(std::move(command));
    case UcxCommand::Kind::kRelease:
      transfers_.at(command.transfer).released = true;
      return Settle(command.transfer);
  }
}

bool UcxEngine::Progress() {
  int rounds = 0;
  while (rounds < kProgressRounds && ucp_worker_progress(worker_.get()) != 0) ++rounds;
  return rounds > 0;
}

void UcxEngine::Sleep() {
  // UCX refuses to arm while it has something to do.
  if (ucp_worker_arm(worker_.get()) != UCS_OK) return;
  pollfd fds[2] = {{worker_fd_, POLLIN, 0}, {command_fd_, POLLIN, 0}};
  const bool waiting = !sends_.empty() || !receives_.empty() || !closing_.empty();
  const Duration limit = waiting ? kCheckInterval : kLongestSleep;
  if (poll(fds, 2, static_cast<int>(limit.millis())) > 0 && (fds[1].revents & POLLIN) != 0) {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t bytes = read(command_fd_, &count, sizeof(count));
  }
}

void UcxEngine::PublishEvents() {
  if (fresh_.empty() && !wake_owner_) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (UcxArrival& arrival : fresh_) events_.push_back(std::move(arrival));
  }
  fresh_.clear();
  wake_owner_ = false;
  WakeOwner();
}

void UcxEngine::Emit(KvEvent event) { fresh_.push_back({std::move(event), {}}); }

// Gives up on peers that take nothing.
void UcxEngine::CheckStalls() {
  const Tick now = clock_->Now();
  if (now < next_check_) return;
  next_check_ = now + kCheckInterval;
  for (const Send& send : sends_) {
    const bool is_connected = send.peer->is_connected;
    const Duration limit = is_connected ? options_.stall_timeout : options_.connect_timeout;
    if (now - std::max(send.started, send.peer->last_sent) < limit) continue;
    FailPeer(send.peer.get(),
             absl::UnavailableError(absl::StrCat(
                 is_connected ? "the peer took no data for " : "the peer did not answer for ",
                 limit.millis(), " ms")));
  }
}

// What has been sent is still to arrive: a send has ended when UCX has its bytes, and closing a
// connection by force throws away what has not left yet. Bounded: peers may have gone.
void UcxEngine::FlushSends() {
  ucp_request_param_t param = {};
  ucs_status_ptr_t flush = ucp_worker_flush_nbx(worker_.get(), &param);
  if (!UCS_PTR_IS_PTR(flush)) return;
  ProgressWhile([flush] { return ucp_request_check_status(flush) == UCS_INPROGRESS; }, kFlushLimit);
  ucp_request_free(flush);
}

// Ends everything that UCX knows of; bounded, so that a hanging fabric cannot hold up the process.
void UcxEngine::ShutDown() {
  FlushSends();
  for (; !announced_.empty(); announced_.pop_front()) {
    ucp_am_data_release(worker_.get(), announced_.front().descriptor);
  }
  std::vector<std::shared_ptr<Peer>> peers;
  for (const auto& [address, peer] : peers_) peers.push_back(peer);
  for (const auto& [raw, peer] : inbound_) peers.push_back(peer);
  for (const auto& peer : peers) FailPeer(peer.get(), absl::CancelledError("shutting down"));
  CloseFailedPeers();
  CloseListener();
  ProgressWhile([this] { return !sends_.empty() || !closing_.empty(); }, kCloseLimit);
  for (const Closing& closing : closing_) ucp_request_free(closing.request);
  closing_.clear();
}

// UCX 1.13 crashes when a connection that its own thread has accepted introduces itself after the
// listener is gone. So no new one is let in, and the listener goes when those let in are gone too:
// they introduce themselves and are rejected; what stays silent is shut down. Bounded.
void UcxEngine::CloseListener() {
  const uint16_t port = port_;
  StopAccepting(port);
  for (int round = 0; round < kMaxCloseRounds; ++round) {
    Progress();
    for (; !requests_.empty(); requests_.pop_front()) {
      ucp_listener_reject(listener_, requests_.front());
    }
    ReapClosing();
    if (!HasConnections(port)) break;
    if (round == kMaxCloseRounds / 2) ShutDownConnections(port);
    poll(nullptr, 0, 1);
  }
  ucp_listener_destroy(std::exchange(listener_, nullptr));
}

void UcxEngine::ProgressWhile(const std::function<bool()>& unfinished, Duration limit) {
  const Tick end = clock_->Now() + limit;
  // The count bounds it where the clock stands still.
  for (int round = 0; round < 10'000'000 && unfinished(); ++round) {
    ucp_worker_progress(worker_.get());
    ReapClosing();
    if (clock_->Now() >= end) return;
  }
}

// --- connections

void UcxEngine::Open(const UcxCommand& command) {
  Transfer& transfer = transfers_[command.transfer];
  absl::StatusOr<std::shared_ptr<Peer>> peer = Connect(command);
  if (peer.ok()) {
    transfer.peer = *std::move(peer);
  } else {
    transfer.peer = std::make_shared<Peer>();
    transfer.peer->failure = peer.status();
  }
  transfer.peer->transfers.insert(command.transfer);
  Settle(command.transfer);
}

absl::StatusOr<std::shared_ptr<UcxEngine::Peer>> UcxEngine::Connect(const UcxCommand& open) {
  auto known = peers_.find(open.bytes);
  if (known != peers_.end()) return known->second;
  const bool listens_everywhere = options_.listen_ip.empty();
  const bool by_loopback = open.address.host_id == host_id_ && listens_everywhere;
  const IpAddress ip = by_loopback ? LoopbackIp() : ChooseIp(interfaces_, open.address);
  const SocketAddress to = ToSocketAddress(ip, open.address.port);
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr = {to.get(), to.length};
  BATON_ASSIGN_OR_RETURN(std::shared_ptr<Peer> peer, CreatePeer(&params));
  peer->address = open.bytes;
  peers_.emplace(open.bytes, peer);
  return peer;
}

// `params` say to whom; error handling is added.
absl::StatusOr<std::shared_ptr<UcxEngine::Peer>> UcxEngine::CreatePeer(ucp_ep_params_t* params) {
  if (peers_.size() + inbound_.size() >= options_.max_peers) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.max_peers,
                     " connections are open, the most this endpoint allows; raise max_peers"));
  }
  auto peer = std::make_shared<Peer>();
  peer->engine = this;
  params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params->err_handler = {&OnPeerError, peer.get()};
  const ucs_status_t status = ucp_ep_create(worker_.get(), params, &peer->endpoint);
  if (status == UCS_OK) return peer;
  return absl::UnavailableError(absl::StrCat(
      "cannot connect to the peer: ", ucs_status_string(status),
      "; check that it runs and that both sides share a transport (tls '", options_.tls, "')"));
}

void UcxEngine::OnConnection(ucp_conn_request_h request, void* argument) {
  static_cast<UcxEngine*>(argument)->requests_.push_back(request);
}

void UcxEngine::AcceptPeers() {
  for (; !requests_.empty(); requests_.pop_front()) {
    if (peers_.size() + inbound_.size() >= options_.max_peers) {
      ucp_listener_reject(listener_, requests_.front());
      continue;
    }
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
    params.conn_request = requests_.front();
    // Where it fails UCX has dropped the request, and the other side learns of it.
    const absl::StatusOr<std::shared_ptr<Peer>> peer = CreatePeer(&params);
    if (peer.ok()) inbound_.emplace(peer->get(), *peer);
  }
}

void UcxEngine::OnPeerError(void* argument, ucp_ep_h, ucs_status_t status) {
  Peer* peer = static_cast<Peer*>(argument);
  peer->engine->FailPeer(peer, UcxStatus(status, "the connection to the peer was lost"));
}

// May be called by UCX, where no connection can be closed: that follows in CloseFailedPeers.
void UcxEngine::FailPeer(Peer* peer, const absl::Status& status) {
  if (!peer->failure.ok()) return;
  peer->failure = status;
  if (peer->address.empty()) {
    auto it = inbound_.find(peer);
    failed_.push_back(std::move(it->second));
    inbound_.erase(it);
  } else {
    ++peers_lost_;
    auto it = peers_.find(peer->address);
    failed_.push_back(std::move(it->second));
    peers_.erase(it);
  }
}

void UcxEngine::CloseFailedPeers() {
  while (!failed_.empty()) {
    const std::shared_ptr<Peer> peer = std::move(failed_.back());
    failed_.pop_back();
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(peer->endpoint, nullptr), &param);
    if (UCS_PTR_IS_PTR(request)) closing_.push_back({request, peer});
    const std::set<TransferId> transfers = peer->transfers;
    for (const TransferId id : transfers) Settle(id);
  }
}

void UcxEngine::ReapClosing() {
  std::erase_if(closing_, [](const Closing& closing) {
    if (ucp_request_check_status(closing.request) == UCS_INPROGRESS) return false;
    ucp_request_free(closing.request);
    return true;
  });
}

// Tells what has become true of a transfer; may end it.
void UcxEngine::Settle(TransferId id) {
  auto it = transfers_.find(id);
  if (it == transfers_.end() || it->second.sends > 0) return;
  Transfer& transfer = it->second;
  if (!transfer.peer->failure.ok() && !transfer.lost_told) {
    transfer.lost_told = true;
    Emit({.kind = KvEventKind::kPeerLost, .transfer = id, .status = transfer.peer->failure});
  }
  if (!transfer.released) return;
  Emit({.kind = KvEventKind::kReleased, .transfer = id});
  transfer.peer->transfers.erase(id);
  transfers_.erase(it);
}

}  // namespace baton::transport
