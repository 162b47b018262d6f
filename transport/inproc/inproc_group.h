#ifndef BATON_TRANSPORT_INPROC_INPROC_GROUP_H_
#define BATON_TRANSPORT_INPROC_INPROC_GROUP_H_

// Groups whose ranks are threads of one process. The ranks share one InprocGroups; each has its own
// Rendezvous, whose Join finds the others by group id. Data goes straight from the sender's buffer
// into the receiver's, small data through the group's own memory so that the sender need not wait.

#include <memory>

#include "base/clock.h"
#include "transport/group/group.h"

namespace baton::transport {

// Thread-safe. What it makes keeps alive what it needs of it.
class InprocGroups {
 public:
  explicit InprocGroups(std::shared_ptr<Clock> clock);
  std::unique_ptr<Rendezvous> NewRendezvous();

  struct Board;  // private to the implementation

 private:
  std::shared_ptr<Board> board_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_INPROC_INPROC_GROUP_H_
