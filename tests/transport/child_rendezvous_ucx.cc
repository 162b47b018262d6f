#include "tests/transport/child_rendezvous.h"

namespace baton::transport {

std::unique_ptr<Rendezvous> MakeChildRendezvous(const UcxGroupOptions& options) {
  return CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value();
}

}  // namespace baton::transport
