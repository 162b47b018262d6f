#include "decode_worker/landing.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/handoff.h"

namespace baton::decode_worker {

void LandingTable::Open(const scheduler::OpenLanding& open) {
  Landing landing;
  landing.key = open.key;
  landing.pages = open.pages;
  landing.token_count = open.token_count;
  landing.received.assign(static_cast<size_t>(runner_.info().layers) * open.pages.size(), false);
  landing.missing = landing.received.size();
  const bool inserted = landings_.emplace(open.epoch, std::move(landing)).second;
  BATON_CHECK(inserted);
}

void LandingTable::Close(Epoch epoch) { BATON_CHECK_EQ(landings_.erase(epoch), 1u); }

bool LandingTable::HeaderFits(const Landing& landing, const transport::KvMessageHeader& header,
                              size_t payload_bytes) const {
  const model::RunnerInfo& info = runner_.info();
  if (header.request != landing.key.request.value() || header.attempt != landing.key.attempt) {
    return false;
  }
  const uint64_t pages = landing.pages.size();
  if (header.layer >= static_cast<uint32_t>(info.layers) || header.page_count == 0 ||
      uint64_t{header.first_page} + header.page_count > pages) {
    return false;
  }
  const uint64_t page_tokens = static_cast<uint64_t>(info.page_tokens);
  const uint64_t begin = header.first_page * page_tokens;
  const uint64_t end = std::min((uint64_t{header.first_page} + header.page_count) * page_tokens,
                                static_cast<uint64_t>(landing.token_count));
  return header.token_count == end - begin && header.payload_bytes == payload_bytes &&
         payload_bytes == header.token_count * static_cast<uint64_t>(info.entry_bytes);
}

void LandingTable::Receive(Tick now, const transport::KvMessageHeader& header,
                           std::span<const std::byte> payload,
                           std::vector<scheduler::DecodeEvent>* events) {
  const Epoch epoch(header.epoch);
  const auto it = landings_.find(epoch);
  if (it == landings_.end()) {
    ++report_.unknown_epoch;
    return;
  }
  Landing& landing = it->second;
  if (!HeaderFits(landing, header, payload.size())) {
    ++report_.bad_header;
    return;
  }
  const size_t row = size_t{header.layer} * landing.pages.size() + header.first_page;
  const auto received = landing.received.begin() + static_cast<ptrdiff_t>(row);
  if (std::any_of(received, received + header.page_count, [](bool b) { return b; })) {
    ++report_.duplicate;
    return;
  }
  const uint64_t checksum =
      header.checksum ^ scheduler::HandoffSeal({landing.key, epoch, header.layer, header.first_page,
                                                header.page_count, header.token_count});
  const absl::Status status =
      runner_.UnpackPages(static_cast<int32_t>(header.layer),
                          std::span(landing.pages).subspan(header.first_page, header.page_count),
                          static_cast<int32_t>(header.token_count), payload, checksum);
  if (!status.ok()) {
    ++report_.bad_checksum;
    // The message that belongs here was spent: what is missing will not come any more.
    if (std::exchange(landing.decided, true)) return;
    events->emplace_back(scheduler::LandingCorrupted{landing.key, epoch, status});
    return;
  }
  std::fill(received, received + header.page_count, true);
  landing.missing -= header.page_count;
  if (landing.messages++ == 0) landing.first_message_at = now;
  ++report_.messages;
  report_.bytes += payload.size();
  if (landing.missing > 0 || std::exchange(landing.decided, true)) return;
  report_.handoffs.push_back(now - landing.first_message_at);
  events->emplace_back(scheduler::LandingCompleted{landing.key, epoch, landing.messages});
}

LandingReport LandingTable::TakeReport() { return std::exchange(report_, {}); }

}  // namespace baton::decode_worker
