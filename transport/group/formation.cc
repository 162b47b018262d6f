#include "transport/group/formation.h"

#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

constexpr Duration kTick = Duration::Millis(50);        // the longest sleep
constexpr Duration kShortTick = Duration::Millis(10);   // where news come from elsewhere, too
constexpr Duration kRetry = Duration::Millis(100);      // between attempts to connect
constexpr Duration kKnockAfter = Duration::Seconds(1);  // of waiting; and between attempts
constexpr Duration kMeshLimit = Duration::Seconds(10);
// With guests, who wait already and may have gone by now.
constexpr Duration kGuestPatience = Duration::Millis(300);

uint64_t RandomKey() {
  uint64_t key = 0;
  // Does not fail for so few bytes.
  [[maybe_unused]] const ssize_t bytes = getrandom(&key, sizeof(key), 0);
  return key;
}

class Former {
 public:
  Former(const FormationRequest& request, FrameListener* listener, Clock* clock)
      : request_(request),
        options_(request.options),
        survivors_(request.survivors),
        host_(survivors_ != nullptr ? survivors_->host() : HostRank(request.options)),
        listener_(listener),
        clock_(clock),
        host_since_(clock->Now()),
        next_knock_(host_since_ + kKnockAfter) {}

  absl::StatusOr<Formed> Run();

 private:
  struct Joined {
    FrameSocket socket;
    JoinMessage message;
  };

  using Outcome = std::optional<absl::StatusOr<Formed>>;  // none: go on

  // --- the host
  Outcome StepHost();
  void TakeJoiners();
  void Consider(FrameListener::Visitor* visitor);
  bool IsWanted(const JoinMessage& message, FrameKind kind) const;
  void Refuse(FrameListener::Visitor* visitor, Refusal refusal, const std::string& why);
  bool AllAreHere() const;
  absl::StatusOr<Formed> WelcomeAll();
  absl::Status RanksAreMissing() const;

  // --- the others
  Outcome StepMember();
  void ConnectToHost();
  void HostFails(const std::string& why, bool is_lost);
  absl::StatusOr<Formed> TakeWelcome(const std::string& payload);
  absl::Status ConnectPeers(const WelcomeMessage& welcome, Formed* formed);
  void TakePeers(const Formed& formed, std::map<int, FrameSocket>* sockets);
  absl::Status HostIsSilent() const;

  // --- both
  bool is_host() const { return options_.rank == host_; }
  void FindHost();
  void Learn(const JoinMessage& message);
  JoinMessage OwnMessage(const std::string& local_ip) const;
  std::string AddressOf(int rank) const {
    const size_t at = static_cast<size_t>(rank);
    return at < request_.addresses.size() ? request_.addresses[at] : "";
  }
  bool Expired() const { return clock_->Now() >= request_.deadline; }
  Outcome KnockAtOthers();
  void Sleep(const std::vector<const FrameSocket*>& sockets) const;

  const FormationRequest& request_;
  const GroupOptions& options_;
  Survivors* const survivors_;  // null: the ranks agree on who is absent
  int host_;
  FrameListener* const listener_;
  Clock* const clock_;
  Tick host_since_;               // when it became the host
  std::string trouble_;           // the last reason why somebody was turned away or not reached
  std::map<int, Joined> joined_;  // the host's
  FrameSocket to_host_;           // the others'
  Tick next_try_;
  std::map<int, FrameSocket> knocks_;
  Tick next_knock_;
};

absl::StatusOr<Formed> Former::Run() {
  while (!Expired()) {
    FindHost();
    Outcome outcome = is_host() ? StepHost() : StepMember();
    if (!outcome.has_value()) outcome = KnockAtOthers();
    if (outcome.has_value()) return *std::move(outcome);
    std::vector<const FrameSocket*> sockets = {&to_host_};
    for (const auto& [rank, joined] : joined_) sockets.push_back(&joined.socket);
    for (const auto& [rank, socket] : knocks_) sockets.push_back(&socket);
    Sleep(sockets);
  }
  return is_host() ? RanksAreMissing() : HostIsSilent();
}

// Where the group forms anew: by what has been learned since the last look.
void Former::FindHost() {
  if (survivors_ == nullptr) return;
  survivors_->Update();
  for (const FrameListener::Visitor& visitor : listener_->visitors()) {
    if (!visitor.has_frame || visitor.first.kind != FrameKind::kJoin) continue;
    const absl::StatusOr<JoinMessage> message = DecodeJoin(visitor.first.payload);
    if (message.ok()) Learn(*message);
  }
  const Tick now = clock_->Now();
  if (!is_host() && now - host_since_ > request_.regroup.patience * 2) survivors_->Lose(host_);
  const int host = survivors_->host();
  if (host == host_) return;
  host_ = host;
  host_since_ = next_try_ = now;
  to_host_.Close();
}

void Former::Learn(const JoinMessage& message) {
  if (message.regroups && message.options.group_id == options_.group_id) {
    survivors_->Lose(message.options.absent_ranks);
  }
}

JoinMessage Former::OwnMessage(const std::string& local_ip) const {
  JoinMessage message{.options = options_,
                      .regroups = survivors_ != nullptr,
                      .last_generation = request_.last_generation,
                      .address = AddressOf(options_.rank),
                      .data_address = request_.data_address};
  const bool is_v6 = local_ip.find(':') != std::string::npos;
  const std::string ip = is_v6 ? absl::StrCat("[", local_ip, "]") : local_ip;
  if (message.address.empty()) message.address = absl::StrCat(ip, ":", listener_->port());
  if (message.options.name.empty()) message.options.name = message.address;
  if (survivors_ != nullptr) message.options.absent_ranks = survivors_->lost();
  return message;
}

void Former::Sleep(const std::vector<const FrameSocket*>& sockets) const {
  std::vector<pollfd> fds = {{listener_->fd(), POLLIN, 0}};
  const auto add = [&fds](const FrameSocket& socket) {
    if (!socket.is_open()) return;
    const short events = static_cast<short>(POLLIN | (socket.wants_write() ? POLLOUT : 0));
    fds.push_back({socket.fd(), events, 0});
  };
  for (const FrameSocket* socket : sockets) add(*socket);
  // Visitors who have said what they want, and wait, say no more.
  for (const FrameListener::Visitor& visitor : listener_->visitors()) {
    if (!visitor.has_frame) add(visitor.socket);
  }
  const Duration tick = survivors_ != nullptr ? kShortTick : kTick;
  poll(fds.data(), fds.size(), static_cast<int>(tick.millis()));
}

// Ranks of a running group learn in this way that this one waits, and may take it in: the welcome
// then comes by the same way.
Former::Outcome Former::KnockAtOthers() {
  if (survivors_ != nullptr) return std::nullopt;
  for (auto& [rank, socket] : knocks_) {
    if (!socket.is_open()) continue;
    const absl::Status status = socket.Pump();
    const std::optional<Frame> frame = socket.Next();
    if (frame.has_value() && frame->kind == FrameKind::kWelcome) {
      joined_.clear();
      host_ = rank;
      to_host_ = std::move(socket);
      return TakeWelcome(frame->payload);
    }
    if (!status.ok()) socket.Close();
  }
  const Tick now = clock_->Now();
  if (now < next_knock_) return std::nullopt;
  next_knock_ = now + kKnockAfter;
  for (int rank = 0; rank < static_cast<int>(request_.addresses.size()); ++rank) {
    if (rank == options_.rank || rank == host_ || knocks_[rank].is_open()) continue;
    absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(AddressOf(rank));
    if (!socket.ok()) continue;
    socket->Queue(FrameKind::kKnock, EncodeJoin(OwnMessage(socket->LocalIp())));
    knocks_[rank] = *std::move(socket);
  }
  return std::nullopt;
}

// --- the host

Former::Outcome Former::StepHost() {
  TakeJoiners();
  if (AllAreHere()) return WelcomeAll();
  return std::nullopt;
}

bool Former::AllAreHere() const {
  if (survivors_ == nullptr) {
    return joined_.size() + 1 + options_.absent_ranks.size() ==
           static_cast<size_t>(options_.world_size);
  }
  const Duration waited = clock_->Now() - host_since_;
  if (waited >= request_.regroup.patience) return true;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    const bool is_missing = rank != options_.rank && !joined_.contains(rank);
    if (is_missing && survivors_->Expects(rank)) return false;
  }
  return waited >= kGuestPatience ||
         std::all_of(request_.regroup.guests.begin(), request_.regroup.guests.end(),
                     [this](int guest) { return joined_.contains(guest); });
}

absl::Status Former::RanksAreMissing() const {
  std::vector<int> missing;
  std::vector<std::string> names;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    names.push_back(AddressOf(rank));
    const bool is_expected =
        survivors_ != nullptr ? survivors_->Expects(rank) : !IsAbsent(options_, rank);
    if (rank != host_ && is_expected && !joined_.contains(rank)) missing.push_back(rank);
  }
  return MissingRanksError(options_, missing, names, trouble_);
}

void Former::TakeJoiners() {
  // First those who have gone: who comes again finds its place free.
  for (auto it = joined_.begin(); it != joined_.end();) {
    it = it->second.socket.Pump().ok() ? std::next(it) : joined_.erase(it);
  }
  listener_->Pump(clock_->Now(), &trouble_);
  for (FrameListener::Visitor& visitor : listener_->visitors()) {
    const FrameKind kind = visitor.first.kind;
    if (visitor.has_frame && (kind == FrameKind::kJoin || kind == FrameKind::kKnock)) {
      Consider(&visitor);
    }
  }
  std::erase_if(listener_->visitors(), [](const auto& v) { return !v.socket.is_open(); });
}

// Takes the visitor's connection, or refuses it, or leaves it waiting.
void Former::Consider(FrameListener::Visitor* visitor) {
  absl::StatusOr<JoinMessage> message = DecodeJoin(visitor->first.payload);
  if (!message.ok()) {
    return Refuse(visitor, Refusal::kForGood, std::string(message.status().message()));
  }
  const FrameKind kind = visitor->first.kind;
  if (kind == FrameKind::kKnock && !IsWanted(*message, kind)) return;
  GroupOptions ours = OwnMessage("").options;
  // Who has just started need not know who is absent, nor need those who regroup know the same.
  if (survivors_ != nullptr) ours.absent_ranks = message->options.absent_ranks;
  const absl::Status same = CheckSameGroup(ours, message->options);
  if (!same.ok()) return Refuse(visitor, Refusal::kForGood, std::string(same.message()));
  if (message->regroups && survivors_ == nullptr) {
    return Refuse(visitor, Refusal::kNoHost, "the host has just started itself");
  }
  if (!IsWanted(*message, kind)) return;
  if (survivors_ != nullptr) Learn(*message);
  const int rank = message->options.rank;
  const auto known = joined_.find(rank);
  if (rank == options_.rank || known != joined_.end()) {
    return Refuse(
        visitor, Refusal::kForNow,
        absl::StrCat(RankName(rank, message->options.name), " is taken already, by ",
                     rank == options_.rank ? "the host" : known->second.message.options.name,
                     "; start each rank once"));
  }
  joined_.emplace(rank, Joined{std::move(visitor->socket), *std::move(message)});
}

// Others wait for another group.
bool Former::IsWanted(const JoinMessage& message, FrameKind kind) const {
  const int rank = message.options.rank;
  if (survivors_ == nullptr) return kind == FrameKind::kJoin && !IsAbsent(options_, rank);
  const std::vector<int>& guests = request_.regroup.guests;
  return message.regroups || std::binary_search(guests.begin(), guests.end(), rank);
}

void Former::Refuse(FrameListener::Visitor* visitor, Refusal refusal, const std::string& why) {
  trouble_ = absl::StrCat(visitor->socket.PeerAddress(), ": ", why);
  visitor->socket.Queue(FrameKind::kRefused, EncodeRefused({refusal, why}));
  // Few bytes on a fresh connection: the kernel takes them at once.
  visitor->socket.Pump().IgnoreError();
  visitor->socket.Close();
}

absl::StatusOr<Formed> Former::WelcomeAll() {
  WelcomeMessage welcome{.generation = request_.last_generation, .key = RandomKey(), .ranks = {}};
  welcome.ranks.resize(static_cast<size_t>(options_.world_size));
  const auto fill = [&](const JoinMessage& message) {
    welcome.ranks[static_cast<size_t>(message.options.rank)] = {
        true, message.options.name, message.address, message.data_address};
    welcome.generation = std::max(welcome.generation, message.last_generation);
  };
  fill(OwnMessage(joined_.empty() ? "" : joined_.begin()->second.socket.LocalIp()));
  for (const auto& [rank, joined] : joined_) fill(joined.message);
  ++welcome.generation;
  Formed formed{.generation = welcome.generation, .key = welcome.key};
  for (size_t rank = 0; rank < welcome.ranks.size(); ++rank) {
    if (welcome.ranks[rank].is_present) formed.present.push_back(static_cast<int>(rank));
    formed.names.push_back(welcome.ranks[rank].name);
    formed.addresses.push_back(welcome.ranks[rank].address);
    formed.data_addresses.push_back(welcome.ranks[rank].data_address);
  }
  const std::string payload = EncodeWelcome(welcome);
  for (auto& [rank, joined] : joined_) {
    joined.socket.Queue(FrameKind::kWelcome, payload);
    formed.sockets.emplace(rank, std::move(joined.socket));
  }
  while (true) {  // until the deadline
    std::vector<const FrameSocket*> unsent;
    for (auto& [rank, socket] : formed.sockets) {
      const absl::Status status = socket.Pump();
      if (!status.ok()) {
        return absl::AbortedError(absl::StrCat(RankName(rank, ""), ": ", status.message()));
      }
      if (socket.wants_write()) unsent.push_back(&socket);
    }
    if (unsent.empty()) return formed;
    if (Expired()) return absl::AbortedError("some ranks do not read their welcome");
    Sleep(unsent);
  }
}

// --- the others

Former::Outcome Former::StepMember() {
  std::string ignored;
  listener_->Pump(clock_->Now(), &ignored);
  if (!to_host_.is_open()) ConnectToHost();
  if (!to_host_.is_open()) return std::nullopt;
  const bool is_unsent = to_host_.wants_write();
  const absl::Status status = to_host_.Pump();
  const std::optional<Frame> frame = to_host_.Next();
  if (!frame.has_value()) {
    if (!status.ok()) HostFails(std::string(status.message()), /*is_lost=*/is_unsent);
    return std::nullopt;
  }
  if (frame->kind == FrameKind::kWelcome) return TakeWelcome(frame->payload);
  if (frame->kind != FrameKind::kRefused) {
    HostFails("the host's answer is none", /*is_lost=*/false);
    return std::nullopt;
  }
  const RefusedMessage refused = DecodeRefused(frame->payload);
  if (refused.refusal == Refusal::kForGood) return absl::FailedPreconditionError(refused.why);
  HostFails(refused.why, refused.refusal == Refusal::kNoHost);
  return std::nullopt;
}

// Lost: there is nobody, or nobody who knows the group.
void Former::HostFails(const std::string& why, bool is_lost) {
  trouble_ = why;
  to_host_.Close();
  if (is_lost && survivors_ != nullptr) survivors_->Lose(host_);
}

void Former::ConnectToHost() {
  const Tick now = clock_->Now();
  if (now < next_try_) return;
  next_try_ = now + kRetry;
  absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(AddressOf(host_));
  if (!socket.ok()) return HostFails(std::string(socket.status().message()), /*is_lost=*/true);
  to_host_ = *std::move(socket);
  to_host_.Queue(FrameKind::kJoin, EncodeJoin(OwnMessage(to_host_.LocalIp())));
}

absl::Status Former::HostIsSilent() const {
  const std::string host = RankName(host_, AddressOf(host_));
  const std::string what = to_host_.is_open()
                               ? absl::StrCat(host, ", the host, still waits for others")
                               : absl::StrCat("missing ", host, ", the host");
  return absl::DeadlineExceededError(
      absl::StrCat("group '", options_.group_id, "' of ", options_.world_size,
                   " ranks did not form within ", options_.timeout.millis(), " ms: ", what,
                   trouble_.empty() ? "" : absl::StrCat(" (last: ", trouble_, ")"),
                   "; start all its ranks, with the same group id, size and addresses"));
}

absl::StatusOr<Formed> Former::TakeWelcome(const std::string& payload) {
  BATON_ASSIGN_OR_RETURN(const WelcomeMessage welcome, DecodeWelcome(payload, options_));
  Formed formed{.generation = welcome.generation, .key = welcome.key};
  for (size_t rank = 0; rank < welcome.ranks.size(); ++rank) {
    if (welcome.ranks[rank].is_present) formed.present.push_back(static_cast<int>(rank));
    formed.names.push_back(welcome.ranks[rank].name);
    formed.addresses.push_back(welcome.ranks[rank].address);
    formed.data_addresses.push_back(welcome.ranks[rank].data_address);
  }
  BATON_RETURN_IF_ERROR(ConnectPeers(welcome, &formed));
  formed.sockets.emplace(host_, std::move(to_host_));
  return formed;
}

// Connects to the ranks below, except the host; those above come to this one.
absl::Status Former::ConnectPeers(const WelcomeMessage& welcome, Formed* formed) {
  const Duration limit = survivors_ != nullptr ? request_.regroup.patience * 2 : kMeshLimit;
  const Tick deadline = std::min(request_.deadline, clock_->Now() + limit);
  for (const int peer : formed->present) {
    if (peer >= options_.rank || peer == host_) continue;
    const std::string& address = welcome.ranks[static_cast<size_t>(peer)].address;
    absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(address);
    if (!socket.ok()) {
      return absl::AbortedError(
          absl::StrCat(RankName(peer, address), ": ", socket.status().message()));
    }
    socket->Queue(FrameKind::kPeer, EncodePeer({formed->key, options_.rank}));
    formed->sockets.emplace(peer, *std::move(socket));
  }
  while (true) {  // until the deadline
    TakePeers(*formed, &formed->sockets);
    bool is_done = formed->sockets.size() + 2 == formed->present.size();
    std::vector<const FrameSocket*> sockets = {&to_host_};
    for (auto& [peer, socket] : formed->sockets) {
      const absl::Status status = socket.Pump();
      if (!status.ok()) {
        return absl::AbortedError(absl::StrCat(
            RankName(peer, welcome.ranks[static_cast<size_t>(peer)].name), ": ", status.message()));
      }
      is_done = is_done && !socket.wants_write();
      sockets.push_back(&socket);
    }
    if (is_done) return absl::OkStatus();
    // A host that has begun anew has closed this connection.
    if (!to_host_.Pump().ok()) return absl::AbortedError("the host has gone");
    if (clock_->Now() >= deadline) return absl::AbortedError("some ranks did not connect");
    Sleep(sockets);
  }
}

void Former::TakePeers(const Formed& formed, std::map<int, FrameSocket>* sockets) {
  std::string ignored;
  listener_->Pump(clock_->Now(), &ignored);
  for (FrameListener::Visitor& visitor : listener_->visitors()) {
    if (!visitor.has_frame || visitor.first.kind != FrameKind::kPeer) continue;
    const PeerMessage message = DecodePeer(visitor.first.payload);
    if (message.key != formed.key || message.rank <= options_.rank ||
        !std::binary_search(formed.present.begin(), formed.present.end(), message.rank)) {
      continue;
    }
    sockets->emplace(message.rank, std::move(visitor.socket));
  }
  std::erase_if(listener_->visitors(), [](const auto& v) { return !v.socket.is_open(); });
}

}  // namespace

absl::StatusOr<Formed> FormGroup(const FormationRequest& request, FrameListener* listener,
                                 Clock* clock) {
  return Former(request, listener, clock).Run();
}

std::vector<int> KnockingRanks(const GroupOptions& options, FrameListener* listener, Clock* clock) {
  std::string ignored;
  listener->Pump(clock->Now(), &ignored);
  std::set<int> ranks;
  for (const FrameListener::Visitor& visitor : listener->visitors()) {
    if (!visitor.has_frame ||
        (visitor.first.kind != FrameKind::kJoin && visitor.first.kind != FrameKind::kKnock)) {
      continue;
    }
    const absl::StatusOr<JoinMessage> message = DecodeJoin(visitor.first.payload);
    if (!message.ok() || message->regroups) continue;
    GroupOptions ours = options;
    ours.absent_ranks = message->options.absent_ranks;
    if (CheckSameGroup(ours, message->options).ok()) ranks.insert(message->options.rank);
  }
  return {ranks.begin(), ranks.end()};
}

}  // namespace baton::transport
