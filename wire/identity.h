#ifndef BATON_WIRE_IDENTITY_H_
#define BATON_WIRE_IDENTITY_H_

// The check that two processes make when they connect: whether they may share a request at all.

#include "absl/status/status.h"
#include "scheduler/messages.h"

namespace baton::wire {

// OK when `peer` serves the same model, in the same KV format, page size and software revision as
// `own`. Otherwise FAILED_PRECONDITION that names every differing field with both values, and what
// to do. Roles, instances and incarnations differ by nature and are not compared.
absl::Status CheckIdentity(const scheduler::WorkerIdentity& own,
                           const scheduler::WorkerIdentity& peer);

}  // namespace baton::wire

#endif  // BATON_WIRE_IDENTITY_H_
