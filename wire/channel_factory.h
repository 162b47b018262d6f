#ifndef BATON_WIRE_CHANNEL_FACTORY_H_
#define BATON_WIRE_CHANNEL_FACTORY_H_

// How a member of the cluster reaches another: main decides (server/grpc_host.h), the rest only
// calls.

#include <functional>
#include <memory>
#include <string>

namespace grpc {
class Channel;
}  // namespace grpc

namespace baton::wire {

// Makes the channel to a member's address. Any thread.
using ChannelFactory = std::function<std::shared_ptr<grpc::Channel>(const std::string& address)>;

}  // namespace baton::wire

#endif  // BATON_WIRE_CHANNEL_FACTORY_H_
