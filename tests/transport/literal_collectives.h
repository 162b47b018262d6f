#ifndef BATON_TESTS_TRANSPORT_LITERAL_COLLECTIVES_H_
#define BATON_TESTS_TRANSPORT_LITERAL_COLLECTIVES_H_

// What the collectives mean, written down literally, and a seeded script of calls whose results
// every rank can work out alone: all inputs follow from (seed, call, rank).

#include <string>

#include "transport/collectives.h"

namespace baton::transport {

// Makes `calls` random calls on `group` and compares each result, bit for bit, with the literal
// one. Sizes are zero, one, uneven, and up to some hundred KB. All ranks use the same seed. Empty,
// or what went wrong first.
std::string RunScript(Collectives* group, uint64_t seed, int calls, Duration timeout);

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_LITERAL_COLLECTIVES_H_
