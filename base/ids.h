#ifndef BATON_BASE_IDS_H_
#define BATON_BASE_IDS_H_

// Identifiers that several layers share. See docs/architecture.md, section 1, for the words.

#include <compare>
#include <cstdint>
#include <ostream>

#include "base/strong_id.h"

namespace baton {

// Index into the model's vocabulary.
using TokenId = int32_t;

// One client request. Unique over routers and their restarts: the upper 32 bits are drawn when a
// router starts, the lower 32 count its requests.
struct RequestIdTag;
using RequestId = StrongId<RequestIdTag, uint64_t>;

// One page of `page_tokens` latents: the same slot in every layer's page array of one rank.
struct PageIdTag;
using PageId = StrongId<PageIdTag, uint32_t>;

// A router's own number for a worker endpoint (a prefill worker, or one rank of a decode worker).
struct WorkerIdTag;
using WorkerId = StrongId<WorkerIdTag, uint32_t>;

// A decode rank's number for one router connection.
struct RouterIdTag;
using RouterId = StrongId<RouterIdTag, uint32_t>;

// Per-rank counter stamped on every landing; never reused by a process, and started from a random
// base so that a restarted rank refuses writes meant for its predecessor.
struct EpochTag;
using Epoch = StrongId<EpochTag, uint64_t>;

// One try at a request. A retry has the same request and the next attempt; messages of older
// attempts are stale.
struct RequestKey {
  RequestId request;
  uint32_t attempt = 0;
  friend constexpr auto operator<=>(const RequestKey&, const RequestKey&) = default;
  friend std::ostream& operator<<(std::ostream& out, const RequestKey& key) {
    return out << key.request << '.' << key.attempt;
  }
};

}  // namespace baton

#endif  // BATON_BASE_IDS_H_
