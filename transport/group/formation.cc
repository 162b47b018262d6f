#include "transport/group/formation.h"

#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

constexpr uint32_t kProtocol = 1;
constexpr Duration kTick = Duration::Millis(50);        // the longest sleep
constexpr Duration kRetry = Duration::Millis(100);      // between attempts to connect
constexpr Duration kKnockAfter = Duration::Seconds(1);  // of waiting; and between attempts
constexpr Duration kMeshLimit = Duration::Seconds(10);

uint64_t RandomKey() {
  uint64_t key = 0;
  // Does not fail for so few bytes.
  [[maybe_unused]] const ssize_t bytes = getrandom(&key, sizeof(key), 0);
  return key;
}

// What the host tells all.
struct Welcome {
  uint64_t generation = 0;
  uint64_t key = 0;
  struct Rank {
    bool is_present = false;
    std::string name, address, data_address;
  };
  std::vector<Rank> ranks;
};

std::string Encode(const Welcome& welcome) {
  PayloadWriter out;
  out.Put(welcome.generation).Put(welcome.key).Put(static_cast<uint32_t>(welcome.ranks.size()));
  for (const Welcome::Rank& rank : welcome.ranks) {
    out.Put(static_cast<uint8_t>(rank.is_present));
    out.PutText(rank.name).PutText(rank.address).PutText(rank.data_address);
  }
  return out.bytes();
}

absl::StatusOr<Welcome> DecodeWelcome(const std::string& payload, const GroupOptions& options) {
  PayloadReader in(payload);
  Welcome welcome;
  welcome.generation = in.Get<uint64_t>();
  welcome.key = in.Get<uint64_t>();
  const uint32_t count = in.Get<uint32_t>();
  bool agrees = count == static_cast<uint32_t>(options.world_size);
  for (int rank = 0; agrees && rank < options.world_size; ++rank) {
    Welcome::Rank& entry = welcome.ranks.emplace_back();
    entry.is_present = in.Get<uint8_t>() != 0;
    entry.name = in.GetText();
    entry.address = in.GetText();
    entry.data_address = in.GetText();
    agrees = entry.is_present != IsAbsent(options, rank);
  }
  if (agrees && in.ok()) return welcome;
  return absl::AbortedError("the host's welcome is damaged");
}

struct PeerMessage {
  uint64_t key = 0;
  int rank = -1;
};

std::string Encode(const PeerMessage& message) {
  return PayloadWriter().Put(message.key).Put(static_cast<int32_t>(message.rank)).bytes();
}

// A rank of -1 where it is damaged.
PeerMessage DecodePeer(const std::string& payload) {
  PayloadReader in(payload);
  PeerMessage message;
  message.key = in.Get<uint64_t>();
  message.rank = in.Get<int32_t>();
  if (!in.ok()) message.rank = -1;
  return message;
}

class Former {
 public:
  Former(const FormationRequest& request, FrameListener* listener, Clock* clock)
      : request_(request),
        options_(request.options),
        host_(HostRank(request.options)),
        listener_(listener),
        clock_(clock),
        started_(clock->Now()),
        next_knock_(started_ + kKnockAfter) {}

  absl::StatusOr<Formed> Run() { return options_.rank == host_ ? RunHost() : RunMember(); }

 private:
  struct Joined {
    FrameSocket socket;
    JoinMessage message;
  };

  // --- the host
  absl::StatusOr<Formed> RunHost();
  void TakeJoiners();
  void Consider(FrameListener::Visitor* visitor);
  void Refuse(FrameListener::Visitor* visitor, bool for_good, const std::string& why);
  absl::StatusOr<Formed> WelcomeAll();

  // --- the others
  absl::StatusOr<Formed> RunMember();
  void ConnectToHost();
  absl::StatusOr<Formed> TakeWelcome(const std::string& payload);
  absl::Status ConnectPeers(const Welcome& welcome, Formed* formed);
  void TakePeers(const Formed& formed, std::map<int, FrameSocket>* sockets);
  absl::Status HostIsSilent() const;

  // --- both
  JoinMessage OwnMessage(const std::string& local_ip) const;
  std::string AddressOf(int rank) const {
    const size_t at = static_cast<size_t>(rank);
    return at < request_.addresses.size() ? request_.addresses[at] : "";
  }
  bool IsPresent(int rank) const { return !IsAbsent(options_, rank); }
  bool Expired() const { return clock_->Now() >= request_.deadline; }
  void KnockAtOthers();
  void Sleep(const std::vector<const FrameSocket*>& sockets) const;

  const FormationRequest& request_;
  const GroupOptions& options_;
  const int host_;
  FrameListener* const listener_;
  Clock* const clock_;
  const Tick started_;
  std::string trouble_;           // the last reason why somebody was turned away or not reached
  std::map<int, Joined> joined_;  // the host's
  FrameSocket to_host_;           // the others'
  Tick next_try_;
  std::map<int, FrameSocket> knocks_;
  Tick next_knock_;
};

JoinMessage Former::OwnMessage(const std::string& local_ip) const {
  JoinMessage message{.options = options_,
                      .last_generation = request_.last_generation,
                      .address = AddressOf(options_.rank),
                      .data_address = request_.data_address};
  const bool is_v6 = local_ip.find(':') != std::string::npos;
  const std::string ip = is_v6 ? absl::StrCat("[", local_ip, "]") : local_ip;
  if (message.address.empty()) message.address = absl::StrCat(ip, ":", listener_->port());
  if (message.options.name.empty()) message.options.name = message.address;
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
  poll(fds.data(), fds.size(), static_cast<int>(kTick.millis()));
}

// Ranks of a running group learn in this way that this one waits: they may take it back in.
void Former::KnockAtOthers() {
  const Tick now = clock_->Now();
  for (auto& [rank, socket] : knocks_) {
    if (socket.is_open() && !socket.Pump().ok()) socket.Close();
  }
  if (now < next_knock_) return;
  next_knock_ = now + kKnockAfter;
  for (int rank = 0; rank < static_cast<int>(request_.addresses.size()); ++rank) {
    if (rank == options_.rank || rank == host_ || knocks_[rank].is_open()) continue;
    absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(AddressOf(rank));
    if (!socket.ok()) continue;
    socket->Queue(FrameKind::kKnock, EncodeJoin(OwnMessage("")));
    knocks_[rank] = *std::move(socket);
  }
}

// --- the host

absl::StatusOr<Formed> Former::RunHost() {
  const size_t wanted = static_cast<size_t>(options_.world_size) - options_.absent_ranks.size() - 1;
  while (true) {  // until the deadline
    TakeJoiners();
    if (joined_.size() == wanted) return WelcomeAll();
    if (Expired()) break;
    KnockAtOthers();
    std::vector<const FrameSocket*> sockets;
    for (const auto& [rank, joined] : joined_) sockets.push_back(&joined.socket);
    Sleep(sockets);
  }
  std::vector<int> missing;
  std::vector<std::string> names;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    names.push_back(AddressOf(rank));
    if (rank != host_ && IsPresent(rank) && !joined_.contains(rank)) missing.push_back(rank);
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
    if (visitor.has_frame && visitor.first.kind == FrameKind::kJoin) Consider(&visitor);
  }
  std::erase_if(listener_->visitors(), [](const auto& v) { return !v.socket.is_open(); });
}

// Takes the visitor's connection, or refuses it, or leaves it waiting.
void Former::Consider(FrameListener::Visitor* visitor) {
  absl::StatusOr<JoinMessage> message = DecodeJoin(visitor->first.payload);
  if (!message.ok()) return Refuse(visitor, true, std::string(message.status().message()));
  const absl::Status same = CheckSameGroup(OwnMessage("").options, message->options);
  if (!same.ok()) return Refuse(visitor, true, std::string(same.message()));
  const int rank = message->options.rank;
  if (IsAbsent(options_, rank)) return;
  const auto known = joined_.find(rank);
  if (rank == options_.rank || known != joined_.end()) {
    return Refuse(
        visitor, false,
        absl::StrCat(RankName(rank, message->options.name), " is taken already, by ",
                     rank == options_.rank ? "the host" : known->second.message.options.name,
                     "; start each rank once"));
  }
  joined_.emplace(rank, Joined{std::move(visitor->socket), *std::move(message)});
}

void Former::Refuse(FrameListener::Visitor* visitor, bool for_good, const std::string& why) {
  trouble_ = absl::StrCat(visitor->socket.PeerAddress(), ": ", why);
  PayloadWriter out;
  out.Put(static_cast<uint8_t>(for_good)).PutText(why);
  visitor->socket.Queue(FrameKind::kRefused, out.bytes());
  // Few bytes on a fresh connection: the kernel takes them at once.
  visitor->socket.Pump().IgnoreError();
  visitor->socket.Close();
}

absl::StatusOr<Formed> Former::WelcomeAll() {
  Welcome welcome{.generation = request_.last_generation, .key = RandomKey()};
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
    formed.data_addresses.push_back(welcome.ranks[rank].data_address);
  }
  const std::string payload = Encode(welcome);
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

absl::StatusOr<Formed> Former::RunMember() {
  while (!Expired()) {
    if (!to_host_.is_open()) ConnectToHost();
    if (to_host_.is_open()) {
      const absl::Status status = to_host_.Pump();
      if (const std::optional<Frame> frame = to_host_.Next(); frame.has_value()) {
        if (frame->kind == FrameKind::kWelcome) return TakeWelcome(frame->payload);
        PayloadReader in(frame->payload);
        const bool for_good = in.Get<uint8_t>() != 0;
        trouble_ = in.GetText();
        if (frame->kind == FrameKind::kRefused && for_good && in.ok()) {
          return absl::FailedPreconditionError(trouble_);
        }
        to_host_.Close();
      } else if (!status.ok()) {
        trouble_ = std::string(status.message());
        to_host_.Close();
      }
    }
    KnockAtOthers();
    std::string ignored;
    listener_->Pump(clock_->Now(), &ignored);
    Sleep({&to_host_});
  }
  return HostIsSilent();
}

void Former::ConnectToHost() {
  const Tick now = clock_->Now();
  if (now < next_try_) return;
  next_try_ = now + kRetry;
  absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(AddressOf(host_));
  if (!socket.ok()) {
    trouble_ = std::string(socket.status().message());
    return;
  }
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
  BATON_ASSIGN_OR_RETURN(const Welcome welcome, DecodeWelcome(payload, options_));
  Formed formed{.generation = welcome.generation, .key = welcome.key};
  for (size_t rank = 0; rank < welcome.ranks.size(); ++rank) {
    if (welcome.ranks[rank].is_present) formed.present.push_back(static_cast<int>(rank));
    formed.names.push_back(welcome.ranks[rank].name);
    formed.data_addresses.push_back(welcome.ranks[rank].data_address);
  }
  BATON_RETURN_IF_ERROR(ConnectPeers(welcome, &formed));
  formed.sockets.emplace(host_, std::move(to_host_));
  return formed;
}

// Connects to the ranks below, except the host; those above come to this one.
absl::Status Former::ConnectPeers(const Welcome& welcome, Formed* formed) {
  const Tick deadline = std::min(request_.deadline, clock_->Now() + kMeshLimit);
  for (const int peer : formed->present) {
    if (peer >= options_.rank || peer == host_) continue;
    const std::string& address = welcome.ranks[static_cast<size_t>(peer)].address;
    absl::StatusOr<FrameSocket> socket = FrameSocket::Connect(address);
    if (!socket.ok()) {
      return absl::AbortedError(
          absl::StrCat(RankName(peer, address), ": ", socket.status().message()));
    }
    socket->Queue(FrameKind::kPeer, Encode(PeerMessage{formed->key, options_.rank}));
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
        message.rank >= options_.world_size || !IsPresent(message.rank)) {
      continue;
    }
    sockets->emplace(message.rank, std::move(visitor.socket));
  }
  std::erase_if(listener_->visitors(), [](const auto& v) { return !v.socket.is_open(); });
}

}  // namespace

std::string EncodeJoin(const JoinMessage& message) {
  const GroupOptions& options = message.options;
  PayloadWriter out;
  out.Put(kProtocol).PutText(options.group_id);
  out.Put(static_cast<int32_t>(options.world_size)).Put(static_cast<int32_t>(options.rank));
  out.PutRanks(options.absent_ranks).PutText(options.revision).PutText(options.model_hash);
  out.PutText(options.name).Put(options.reduce_part_bytes).Put(message.last_generation);
  out.PutText(message.address).PutText(message.data_address);
  return out.bytes();
}

absl::StatusOr<JoinMessage> DecodeJoin(const std::string& payload) {
  PayloadReader in(payload);
  const uint32_t protocol = in.Get<uint32_t>();
  if (protocol != kProtocol) {
    return absl::InvalidArgumentError(absl::StrCat("the rank speaks version ", protocol,
                                                   " of the handshake, the host ", kProtocol,
                                                   "; run one release on all ranks"));
  }
  JoinMessage message;
  GroupOptions& options = message.options;
  options.group_id = in.GetText();
  options.world_size = in.Get<int32_t>();
  options.rank = in.Get<int32_t>();
  options.absent_ranks = in.GetRanks();
  options.revision = in.GetText();
  options.model_hash = in.GetText();
  options.name = in.GetText();
  options.reduce_part_bytes = in.Get<uint64_t>();
  message.last_generation = in.Get<uint64_t>();
  message.address = in.GetText();
  message.data_address = in.GetText();
  if (!in.ok()) return absl::InvalidArgumentError("the rank's message is damaged");
  BATON_RETURN_IF_ERROR(CheckGroupOptions(options));
  return message;
}

absl::StatusOr<Formed> FormGroup(const FormationRequest& request, FrameListener* listener,
                                 Clock* clock) {
  return Former(request, listener, clock).Run();
}

std::vector<int> KnockingRanks(const std::string& group_id, FrameListener* listener, Clock* clock) {
  std::string ignored;
  listener->Pump(clock->Now(), &ignored);
  std::set<int> ranks;
  for (const FrameListener::Visitor& visitor : listener->visitors()) {
    if (!visitor.has_frame ||
        (visitor.first.kind != FrameKind::kJoin && visitor.first.kind != FrameKind::kKnock)) {
      continue;
    }
    const absl::StatusOr<JoinMessage> message = DecodeJoin(visitor.first.payload);
    if (message.ok() && message->options.group_id == group_id) ranks.insert(message->options.rank);
  }
  return {ranks.begin(), ranks.end()};
}

}  // namespace baton::transport
