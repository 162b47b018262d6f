// The other process of process_conformance: one endpoint, told by its arguments what to do.
//
//   transport_child MODE ARGUMENT [PEER_ADDRESS_IN_HEX]
//
// ARGUMENT is for the transport (child_transport.h).
//
//   echo    says its address; polls, and answers each message to the peer with a notify of 16
//           bytes: the message's request number and whether its checksum agreed
//   slow    the same, but it polls one event at a time and rests in between
//   sleep   says its address and never polls
//   flood   sends messages to the peer without end
//
// Lives until its standard input ends. Prints its address in hex on the first line.

#include <poll.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>

#include "base/check.h"
#include "tests/transport/child_transport.h"
#include "tests/transport/hex.h"
#include "tests/transport/test_peer.h"

namespace baton::transport {
namespace {

bool InputEnded() {
  pollfd fd = {0, POLLIN, 0};
  return poll(&fd, 1, 0) > 0;
}

void Echo(TestPeer* peer, TransferId transfer, bool is_slow) {
  while (!InputEnded()) {
    if (is_slow) poll(nullptr, 0, 10);
    if (peer->Poll(is_slow ? 1 : 16) == 0) peer->bell().Wait(std::chrono::milliseconds(20));
    for (const SeenEvent& event : peer->seen) {
      if (event.kind == KvEventKind::kPeerLost) return;
      if (event.kind != KvEventKind::kReceived) continue;
      const uint64_t answer[2] = {event.header.request,
                                  Checksum(event.payload) == event.header.checksum};
      // Refused when many are in flight: the parent sends no more than it allows.
      BATON_CHECK(peer->transport().Notify(transfer, std::as_bytes(std::span(answer))).ok());
    }
    peer->seen.clear();
  }
}

void Flood(TestPeer* peer, TransferId transfer) {
  TestMemory memory(&peer->transport(), size_t{1} << 20, 1);
  uint64_t id = 0;
  while (!InputEnded()) {
    KvMessageHeader header = TestHeader(id, memory.bytes());
    if (peer->transport().Post(transfer, id, header, memory.bytes()).ok()) ++id;
    if (peer->Poll() == 0) peer->bell().Wait(std::chrono::milliseconds(20));
    peer->seen.clear();
  }
}

int Main(int argc, char** argv) {
  BATON_CHECK(argc >= 3);
  const std::string mode = argv[1];
  Bell bell;
  TestPeer peer(MakeChildTransport(argv[2]), &bell);
  std::cout << ToHex(peer.transport().address()) << std::endl;
  if (mode == "sleep") {
    while (!InputEnded()) bell.Wait(std::chrono::milliseconds(50));
    return 0;
  }
  BATON_CHECK(argc >= 4);
  const TransferId transfer = peer.transport().Prepare(FromHex(argv[3])).value();
  if (mode == "echo" || mode == "slow") Echo(&peer, transfer, mode == "slow");
  if (mode == "flood") Flood(&peer, transfer);
  return 0;
}

}  // namespace
}  // namespace baton::transport

int main(int argc, char** argv) { return baton::transport::Main(argc, argv); }
