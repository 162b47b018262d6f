#include "prefill_worker/handoff_sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "scheduler/handoff.h"

namespace baton::prefill_worker {
namespace {

// While messages wait for room: the transport wakes the loop when there is, this is the safety net.
constexpr Duration kBacklogWait = Duration::Millis(1);

}  // namespace

using transport::KvEvent;
using transport::KvEventKind;
using transport::KvMessageHeader;
using transport::TransferId;

absl::StatusOr<std::unique_ptr<HandoffSender>> HandoffSender::Create(
    const HandoffSenderOptions& options, Clock& clock, model::Runner& runner,
    std::unique_ptr<transport::KvTransport> transport) {
  const model::RunnerInfo& info = runner.info();
  const auto page_bytes =
      static_cast<uint64_t>(info.page_tokens) * static_cast<uint64_t>(info.entry_bytes);
  const uint64_t limit = std::min({options.max_message_bytes, options.staging_bytes,
                                   transport->capabilities().max_message_bytes});
  if (page_bytes == 0 || page_bytes > limit) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a page of one layer has ", page_bytes, " bytes; a hand-off message may have ", limit,
        " (the least of max_message_bytes, staging_bytes and the transport's limit of ",
        transport->capabilities().max_message_bytes, "): raise them or use smaller pages"));
  }
  BATON_CHECK(options.ranks >= 1 && options.rank >= 0 && options.rank < options.ranks);
  if (options.max_peers < 1 || options.max_transport_events < 1) {
    return absl::InvalidArgumentError("max_peers and max_transport_events must be at least 1");
  }
  BATON_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> memory,
                         transport->Allocate(options.staging_bytes));
  auto sender = std::unique_ptr<HandoffSender>(
      new HandoffSender(options, clock, runner, std::move(transport), std::move(memory),
                        static_cast<int32_t>(std::min<uint64_t>(limit / page_bytes, 1 << 20))));
  BATON_RETURN_IF_ERROR(sender->transport_->Register(sender->ring_.memory()).status());
  return sender;
}

HandoffSender::HandoffSender(const HandoffSenderOptions& options, Clock& clock,
                             model::Runner& runner,
                             std::unique_ptr<transport::KvTransport> transport,
                             std::shared_ptr<std::byte> memory, int32_t pages_per_message)
    : options_(options),
      clock_(clock),
      runner_(runner),
      pages_per_message_(pages_per_message),
      ring_(std::move(memory), options.staging_bytes),
      transport_(std::move(transport)) {}

// --- calls --------------------------------------------------------------------------------

void HandoffSender::Open(const scheduler::OpenHandoff& open) {
  Call call;
  call.landing = open.landing;
  const absl::StatusOr<TransferId> transfer = TransferTo(open.landing.transport_address);
  if (!transfer.ok()) {
    options_.metrics.failures_total.Add();
    finished_.push_back({open.key, transfer.status(), 0, 0});
    return;
  }
  call.transfer = *transfer;
  ++peers_.at(open.landing.transport_address).calls;
  const bool inserted = calls_.emplace(open.key, std::move(call)).second;
  BATON_CHECK(inserted);
}

absl::StatusOr<TransferId> HandoffSender::TransferTo(const std::string& address) {
  const auto it = peers_.find(address);
  if (it != peers_.end()) return it->second.transfer;
  if (static_cast<int32_t>(peers_.size()) >= options_.max_peers) {
    const auto idle = std::find_if(peers_.begin(), peers_.end(),
                                   [](const auto& entry) { return entry.second.calls == 0; });
    if (idle == peers_.end()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("hand-offs to ", options_.max_peers, " decode ranks are under way already"));
    }
    transport_->Release(idle->second.transfer);
    peers_.erase(idle);
  }
  BATON_ASSIGN_OR_RETURN(const TransferId transfer, transport_->Prepare(address));
  peers_.emplace(address, Peer{transfer, 0});
  return transfer;
}

void HandoffSender::Abort(RequestKey key) {
  std::erase_if(finished_, [key](const auto& finished) { return finished.key == key; });
  std::erase_if(pass_, [key](const auto& slice) { return slice.key == key; });
  if (calls_.contains(key)) DropCall(key);
}

void HandoffSender::DropCall(RequestKey key) {
  const auto it = calls_.find(key);
  // Its peer may have been lost and replaced in the meantime.
  const auto peer = peers_.find(it->second.landing.transport_address);
  if (peer != peers_.end() && peer->second.transfer == it->second.transfer) --peer->second.calls;
  if (it->second.backlog > 0) {
    std::erase_if(backlog_, [key](const Piece& piece) { return piece.key == key; });
  }
  calls_.erase(it);
}

void HandoffSender::Fail(RequestKey key, absl::Status status) {
  const Call& call = calls_.at(key);
  options_.metrics.failures_total.Add();
  finished_.push_back({key, std::move(status), call.messages, call.bytes});
  DropCall(key);
}

void HandoffSender::FinishIfComplete(RequestKey key) {
  const Call& call = calls_.at(key);
  if (!call.all_announced || call.backlog > 0) return;
  transport_->Flush(call.transfer);  // its end waits for nobody's next layers
  if (call.messages > 0) options_.metrics.seconds.Observe((clock_.Now() - call.begun).seconds());
  finished_.push_back({key, absl::OkStatus(), call.messages, call.bytes});
  DropCall(key);
}

std::vector<scheduler::HandoffFinished> HandoffSender::TakeFinished() {
  return std::exchange(finished_, {});
}

std::vector<RequestKey> HandoffSender::TakeProgressed() {
  std::vector<RequestKey> keys;
  for (auto& [key, call] : calls_) {
    if (std::exchange(call.progressed, false)) keys.push_back(key);
  }
  return keys;
}

// --- passes -------------------------------------------------------------------------------

void HandoffSender::BeginPass(std::vector<scheduler::HandoffSlice> slices) {
  BATON_CHECK(pass_.empty());
  pass_ = std::move(slices);
}

// This rank's share of what the pass finishes of one layer. Which rank has which run turns with
// layer and place, as a pass often finishes fewer pages than there are ranks.
void HandoffSender::QueuePages(const scheduler::HandoffSlice& slice, int32_t layer, Call& call) {
  const int64_t pages = static_cast<int64_t>(slice.pages.size());
  const int64_t run = (options_.rank + layer + int64_t{slice.first_page}) % options_.ranks;
  const auto begin = static_cast<int32_t>(pages * run / options_.ranks);
  const auto end = static_cast<int32_t>(pages * (run + 1) / options_.ranks);
  const auto page_tokens = static_cast<uint32_t>(runner_.info().page_tokens);
  for (int32_t first = begin; first < end; first += pages_per_message_) {
    const int32_t count = std::min(pages_per_message_, end - first);
    Piece piece;
    piece.key = slice.key;
    piece.layer = static_cast<uint32_t>(layer);
    piece.first_page = slice.first_page + static_cast<uint32_t>(first);
    piece.pages.assign(slice.pages.begin() + first, slice.pages.begin() + first + count);
    piece.token_count = std::min(slice.token_count - static_cast<uint32_t>(first) * page_tokens,
                                 static_cast<uint32_t>(count) * page_tokens);
    backlog_.push_back(std::move(piece));
    ++call.backlog;
  }
}

void HandoffSender::OnLayerWritten(int32_t layer) {
  const bool last_layer = layer + 1 == runner_.info().layers;
  for (const scheduler::HandoffSlice& slice : pass_) {
    const auto it = calls_.find(slice.key);
    if (it == calls_.end()) continue;  // failed already
    QueuePages(slice, layer, it->second);
    if (!slice.last || !last_layer) continue;
    it->second.all_announced = true;
    FinishIfComplete(slice.key);  // with nothing of it in the backlog nobody else would notice
  }
  Progress();
}

void HandoffSender::EndPass() { pass_.clear(); }

bool HandoffSender::Progress() {
  events_.clear();
  transport_->Poll(&events_, options_.max_transport_events);
  for (const KvEvent& event : events_) HandleEvent(event);
  WorkOffBacklog();
  return static_cast<int32_t>(events_.size()) >= options_.max_transport_events;
}

// In order, so that no call is starved by later ones.
void HandoffSender::WorkOffBacklog() {
  while (!backlog_.empty()) {
    const PostResult result = PostFront();
    if (result == PostResult::kNoRoom) return;
    if (result == PostResult::kFailed) continue;  // the call took its pieces with it
    const RequestKey key = backlog_.front().key;
    backlog_.pop_front();
    --calls_.at(key).backlog;
    FinishIfComplete(key);
  }
}

HandoffSender::PostResult HandoffSender::PostFront() {
  const Piece& piece = backlog_.front();
  Call& call = calls_.at(piece.key);
  const size_t bytes = size_t{piece.token_count} * static_cast<size_t>(runner_.info().entry_bytes);
  const uint64_t post = next_post_++;
  const std::span<std::byte> payload = ring_.Take(bytes, post);
  if (payload.empty()) return PostResult::kNoRoom;

  KvMessageHeader header;
  header.request = piece.key.request.value();
  header.attempt = piece.key.attempt;
  header.layer = piece.layer;
  header.epoch = call.landing.epoch.value();
  header.first_page = piece.first_page;
  header.page_count = static_cast<uint32_t>(piece.pages.size());
  header.token_count = piece.token_count;
  header.source_rank = static_cast<uint32_t>(options_.rank);
  header.payload_bytes = bytes;
  header.checksum =
      runner_.PackPages(static_cast<int32_t>(piece.layer), piece.pages,
                        static_cast<int32_t>(piece.token_count), payload) ^
      scheduler::HandoffSeal({piece.key, call.landing.epoch, header.layer, header.first_page,
                              header.page_count, header.token_count});
  const absl::Status status = transport_->Post(call.transfer, post, header, payload);
  if (status.ok()) {
    posts_.emplace(post, call.transfer);
    options_.metrics.messages_total.Add();
    options_.metrics.bytes_total.Add(static_cast<double>(bytes));
    if (call.messages == 0) call.begun = clock_.Now();
    ++call.messages;
    call.bytes += bytes;
    call.progressed = true;
    return PostResult::kPosted;
  }
  ring_.GiveBack(post);
  if (absl::IsResourceExhausted(status)) return PostResult::kNoRoom;
  Fail(piece.key, status);
  return PostResult::kFailed;
}

// --- transport ----------------------------------------------------------------------------

void HandoffSender::HandleEvent(const KvEvent& event) {
  switch (event.kind) {
    case KvEventKind::kSent:
      // A post of a lost transfer may already be settled.
      if (posts_.erase(event.post_id) > 0) ring_.GiveBack(event.post_id);
      return;
    case KvEventKind::kPeerLost:
      return OnPeerLost(event.transfer, event.status);
    case KvEventKind::kReceived:  // nobody writes to prefill
    case KvEventKind::kNotified:
    case KvEventKind::kReleased:
      return;
  }
}

void HandoffSender::OnPeerLost(TransferId transfer, const absl::Status& status) {
  for (auto it = posts_.begin(); it != posts_.end();) {
    const auto here = it++;
    if (here->second != transfer) continue;
    ring_.GiveBack(here->first);
    posts_.erase(here);
  }
  std::vector<RequestKey> lost;
  for (const auto& [key, call] : calls_) {
    if (call.transfer == transfer) lost.push_back(key);
  }
  for (const RequestKey key : lost) {
    Fail(key, absl::UnavailableError(
                  absl::StrCat("the transfer to the decode rank broke: ", status.ToString())));
  }
  std::erase_if(peers_, [&](const auto& entry) { return entry.second.transfer == transfer; });
  transport_->Release(transfer);
}

Tick HandoffSender::NextWake(Tick now) const {
  return has_backlog() ? now + kBacklogWait : Tick::Infinite();
}

void HandoffSender::CheckInvariants() const {
  std::map<RequestKey, int32_t> backlog;
  for (const Piece& piece : backlog_) ++backlog[piece.key];
  std::map<std::string, int32_t> calls;
  for (const auto& [key, call] : calls_) {
    BATON_CHECK_EQ(call.backlog, backlog[key]);
    BATON_CHECK(!call.all_announced || call.backlog > 0);  // else it would be finished
    ++calls[call.landing.transport_address];
  }
  for (const auto& [key, pieces] : backlog) BATON_CHECK(calls_.contains(key));
  for (const auto& [address, peer] : peers_) BATON_CHECK_EQ(peer.calls, calls[address]);
  BATON_CHECK_EQ(posts_.size(), ring_.blocks_in_use());
  BATON_CHECK_LE(peers_.size(), static_cast<size_t>(options_.max_peers));
}

}  // namespace baton::prefill_worker
