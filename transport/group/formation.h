#ifndef BATON_TRANSPORT_GROUP_FORMATION_H_
#define BATON_TRANSPORT_GROUP_FORMATION_H_

// One attempt of the ranks of different processes to find each other, over TCP. The ranks send
// kJoin to the host, which answers with kWelcome once all are there: the generation, a key drawn
// for it, and every rank's addresses. Then each rank connects to those below it, so that every two
// share a connection, which lives as long as the group (control.h).
//
// Where a group forms anew (Rendezvous::Regroup), who is the host and who takes part is found out
// on the way, and a rank that has just started is taken in over the connection by which it knocks.
//
// Blocking, on the caller's thread, until the deadline; sleeps in poll meanwhile.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "transport/group/formation_messages.h"
#include "transport/group/frame_socket.h"
#include "transport/group/group.h"
#include "transport/group/survivors.h"

namespace baton::transport {

struct FormationRequest {
  GroupOptions options;
  // "host:port" of the ranks' listeners, by rank; or of rank 0 alone.
  std::vector<std::string> addresses;
  uint64_t last_generation = 0;  // the highest that this process has seen
  std::string data_address;      // where this rank's data is to be sent: opaque
  Tick deadline;
  // Where a group forms anew: who is left of the one before, and how. Else null.
  Survivors* survivors = nullptr;
  RegroupOptions regroup;
};

struct Formed {
  uint64_t generation = 0;
  uint64_t key = 0;
  std::vector<int> present;                 // ascending
  std::vector<std::string> names;           // by rank
  std::vector<std::string> addresses;       // by rank, of the listeners
  std::vector<std::string> data_addresses;  // by rank
  std::map<int, FrameSocket> sockets;       // to each present peer
};

// ABORTED: another rank went away halfway; try again. Else as Rendezvous::Join.
absl::StatusOr<Formed> FormGroup(const FormationRequest& request, FrameListener* listener,
                                 Clock* clock);

// The ranks that have just started, fit `options` but for absent_ranks, and wait at `listener`;
// ascending.
std::vector<int> KnockingRanks(const GroupOptions& options, FrameListener* listener, Clock* clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_FORMATION_H_
