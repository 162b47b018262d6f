#ifndef BATON_SCHEDULER_IDENTITY_H_
#define BATON_SCHEDULER_IDENTITY_H_

// Whether two members of a cluster may work together: checked when they connect, before any request
// is paired.

#include "absl/status/status.h"
#include "scheduler/messages.h"

namespace baton::scheduler {

// FAILED_PRECONDITION that names both members and every field that differs (model name and hash, KV
// format, page size, layers, revision). An empty or zero field matches anything.
absl::Status CheckCompatible(const WorkerIdentity& mine, const WorkerIdentity& theirs);

// Fills in what `mine` leaves open (model name and hash, KV format, page size, layers, revision):
// a router learns from the first worker what all others must have.
void Adopt(const WorkerIdentity& theirs, WorkerIdentity& mine);

}  // namespace baton::scheduler

#endif  // BATON_SCHEDULER_IDENTITY_H_
