#ifndef BATON_SERVER_GRPC_HOST_H_
#define BATON_SERVER_GRPC_HOST_H_

// A gRPC server with what every role of Baton wants: the standard health service, reflection, and
// keepalive that welcomes idle clients which ping every 30 seconds. Also makes the channels between
// Baton's processes.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "wire/channel_factory.h"

namespace grpc {
class Channel;
class Service;
}  // namespace grpc

namespace baton::server {

struct GrpcHostOptions {
  std::string address = "127.0.0.1:0";  // host:port; port 0: any free one
  int32_t max_message_bytes = 64 << 20;
  // Pings that come more often than this from a client are too many, and end its connection.
  Duration min_ping_interval = Duration::Seconds(10);
};

class GrpcHost {
 public:
  // Serves until Shutdown. The services must outlive the host. UNAVAILABLE when the address cannot
  // be bound.
  static absl::StatusOr<std::unique_ptr<GrpcHost>> Start(
      const GrpcHostOptions& options, const std::vector<grpc::Service*>& services);
  virtual ~GrpcHost() = default;  // as Shutdown(0)

  virtual int port() const = 0;  // that is bound

  // What the health service says of one service ("" = the process lives: serving from the start).
  virtual void SetServing(const std::string& service, bool serving) = 0;

  // A channel from this machine, for a server that listens on 127.0.0.1 or on every address.
  // (gRPC's own in-process channel miscounts references now and then in version 1.51, and aborts.)
  virtual std::shared_ptr<grpc::Channel> LoopbackChannel() = 0;

  // Refuses new calls, gives open ones `grace` to end, then cancels them. Returns when all ended.
  virtual void Shutdown(Duration grace) = 0;
};

// Pings that come from peers' channels are welcome at this interval and longer ones.
inline constexpr Duration kPeerPingInterval = Duration::Millis(100);

// Makes channels to other processes of the cluster. One reconnects within a second of its peer's
// return, and breaks when the peer has been silent for `timeout`, at least a second: its host is
// gone, or it is stopped.
wire::ChannelFactory PeerChannels(Duration timeout);

// A channel to a server from a client tool.
std::shared_ptr<grpc::Channel> MakeClientChannel(const std::string& address);

}  // namespace baton::server

#endif  // BATON_SERVER_GRPC_HOST_H_
