#ifndef BATON_TRANSPORT_INPROC_INPROC_EXCHANGE_H_
#define BATON_TRANSPORT_INPROC_INPROC_EXCHANGE_H_

// The exchange between threads. A rank posts its call (shape and spans) in its slot and then takes
// what the others have posted for it. Posts alternate between two places: who posts call n+2 has
// finished n+1, to which every rank has come after it had taken all of call n.
//
// A rank that fails breaks the group for all and then waits until nobody reads its buffers: a
// reader marks itself before it looks whether the group is broken, so after the break none begins.

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "transport/group/exchange.h"

namespace baton::transport {

// One for each rank; entries of ranks that are not in `present` are null. `names[r]` is rank r's.
std::vector<std::unique_ptr<Exchange>> MakeInprocExchanges(const std::vector<int>& present,
                                                           std::vector<std::string> names,
                                                           std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_INPROC_INPROC_EXCHANGE_H_
