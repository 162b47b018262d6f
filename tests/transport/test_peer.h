#ifndef BATON_TESTS_TRANSPORT_TEST_PEER_H_
#define BATON_TESTS_TRANSPORT_TEST_PEER_H_

// An endpoint as a test sees it: polls it, keeps copies of what arrives, waits for conditions.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/random.h"
#include "transport/kv_transport.h"

namespace baton::transport {

// Wakes a waiting test; what SetWakeup is given. Must outlive the endpoints.
class Bell {
 public:
  void Ring() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      rung_ = true;
    }
    condition_.notify_all();
  }
  // True when it rang since the last call, or does within `limit`.
  bool Wait(std::chrono::milliseconds limit) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool rung = condition_.wait_for(lock, limit, [this] { return rung_; });
    rung_ = false;
    return rung;
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool rung_ = false;
};

struct SeenEvent {
  KvEventKind kind;
  TransferId transfer;
  uint64_t post_id = 0;
  KvMessageHeader header;
  std::vector<std::byte> payload;
  absl::Status status;
};

class TestPeer {
 public:
  TestPeer(std::unique_ptr<KvTransport> transport, Bell* bell)
      : bell_(bell), transport_(std::move(transport)) {
    transport_->SetWakeup([bell] { bell->Ring(); });
  }

  KvTransport& transport() { return *transport_; }
  Bell& bell() { return *bell_; }
  void Destroy() { transport_.reset(); }

  // One Poll; returns how many events came.
  size_t Poll(int max_events = 16) {
    std::vector<KvEvent> events;
    transport_->Poll(&events, max_events);
    for (const KvEvent& event : events) {
      seen.push_back({event.kind,
                      event.transfer,
                      event.post_id,
                      event.header,
                      {event.payload.begin(), event.payload.end()},
                      event.status});
    }
    return events.size();
  }

  size_t Count(KvEventKind kind) const {
    return std::count_if(seen.begin(), seen.end(),
                         [kind](const SeenEvent& event) { return event.kind == kind; });
  }
  size_t Count(KvEventKind kind, TransferId transfer) const {
    return std::count_if(seen.begin(), seen.end(), [&](const SeenEvent& event) {
      return event.kind == kind && event.transfer == transfer;
    });
  }
  std::vector<SeenEvent> Seen(KvEventKind kind) const {
    std::vector<SeenEvent> out;
    std::copy_if(seen.begin(), seen.end(), std::back_inserter(out),
                 [kind](const SeenEvent& event) { return event.kind == kind; });
    return out;
  }

  // For messages of failed tests.
  std::string Summary() const {
    std::string out = "seen:";
    for (const SeenEvent& event : seen) {
      out += " " + std::to_string(static_cast<int>(event.kind));
      if (!event.status.ok()) out += "(" + event.status.ToString() + ")";
    }
    return out + "\n";
  }

  std::vector<SeenEvent> seen;

 private:
  Bell* const bell_;
  std::unique_ptr<KvTransport> transport_;
};

// Polls all `peers` until `done`; false after `limit` (generous: only a failing test waits so
// long).
inline bool PollUntil(const std::vector<TestPeer*>& peers, const std::function<bool()>& done,
                      std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    size_t events = 0;
    for (TestPeer* peer : peers) events += peer->Poll();
    if (done()) return true;
    if (std::chrono::steady_clock::now() >= end) {
      for (TestPeer* peer : peers) std::cerr << peer->Summary();
      return false;
    }
    if (events == 0 && !peers.empty()) peers[0]->bell().Wait(std::chrono::milliseconds(50));
  }
  return true;
}

// Registered memory with reproducible contents.
class TestMemory {
 public:
  TestMemory(KvTransport* transport, size_t bytes, uint64_t seed) : bytes_(bytes) {
    Rng rng(seed);
    for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
      const uint64_t word = rng.Next();
      std::memcpy(bytes_.data() + at, &word, std::min(sizeof(word), bytes - at));
    }
    region_ = transport->Register(bytes_).value();
  }
  std::span<std::byte> bytes() { return bytes_; }
  std::span<const std::byte> Part(size_t at, size_t size) const {
    return std::span<const std::byte>(bytes_).subspan(at, size);
  }
  RegionId region() const { return region_; }

 private:
  std::vector<std::byte> bytes_;
  RegionId region_;
};

inline KvMessageHeader TestHeader(uint64_t request, std::span<const std::byte> payload) {
  KvMessageHeader header;
  header.request = request;
  header.attempt = 2;
  header.layer = 3;
  header.epoch = 0x1122334455667788u;
  header.first_page = 5;
  header.page_count = 6;
  header.token_count = 7;
  header.source_rank = 8;
  header.checksum = 0x99aabbccddeeff00u + request;
  header.payload_bytes = payload.size();
  return header;
}

inline bool SameBytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

inline bool SameHeader(const KvMessageHeader& a, const KvMessageHeader& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_TEST_PEER_H_
