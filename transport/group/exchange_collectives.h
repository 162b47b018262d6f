#ifndef BATON_TRANSPORT_GROUP_EXCHANGE_COLLECTIVES_H_
#define BATON_TRANSPORT_GROUP_EXCHANGE_COLLECTIVES_H_

// Collectives made of exchanges: what inproc and ucx share. Each call is one exchange, except an
// AllReduceSum of much data: there each rank adds up a slice for all (one exchange brings it the
// others' slices, a second one spreads the sums), part by part.

#include <memory>

#include "base/clock.h"
#include "transport/collectives.h"
#include "transport/group/exchange.h"
#include "transport/group/group.h"

namespace baton::transport {

std::unique_ptr<Collectives> MakeExchangeCollectives(const GroupOptions& options,
                                                     uint64_t generation,
                                                     std::unique_ptr<Exchange> exchange,
                                                     std::shared_ptr<Clock> clock);

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_EXCHANGE_COLLECTIVES_H_
