#ifndef BATON_TRANSPORT_INPROC_INPROC_TRANSPORT_H_
#define BATON_TRANSPORT_INPROC_INPROC_TRANSPORT_H_

// KvTransport between endpoints of one process. Post copies the payload into the receiver's bounded
// staging; when that is full the post stays in flight and is tried again by the sender's Poll (the
// receiver wakes it up once there is room). An endpoint that is destroyed is a lost peer to the
// others.
//
// Each endpoint belongs to one loop thread, different endpoints may live on different threads.
// Without threads, clock or randomness of its own: driven from a single thread, the same calls give
// the same events in the same order. Messages of one transfer arrive in the order of their Posts
// (more than the interface promises).

#include <cstdint>
#include <memory>
#include <string>

#include "transport/kv_transport.h"

namespace baton::transport {

struct InprocOptions {
  uint64_t max_message_bytes = uint64_t{16} << 20;
  // Received and not yet polled, per endpoint. Allocated as needed, recycled, freed with the
  // endpoint. At least one message of the largest size must fit (as StagingPool rounds it).
  uint64_t staging_bytes = uint64_t{128} << 20;
  uint32_t max_posts_in_flight = 256;  // and as many notifies
  uint32_t max_queued_messages = 4096;
  uint32_t max_transfers = 4096;  // prepared and kReleased not yet polled
};

// What the endpoints of one process share: who listens at which address. Thread-safe. Endpoints
// keep what they need of it alive.
class InprocFabric {
 public:
  InprocFabric();

  // A new endpoint. `name` appears in its address, for people; it need not be unique, and an
  // endpoint made again under the same name has a new address.
  std::unique_ptr<KvTransport> NewEndpoint(const std::string& name,
                                           const InprocOptions& options = {});

  struct Directory;  // private to the implementation

 private:
  std::shared_ptr<Directory> directory_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_INPROC_INPROC_TRANSPORT_H_
