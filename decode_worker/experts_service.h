#ifndef BATON_DECODE_WORKER_EXPERTS_SERVICE_H_
#define BATON_DECODE_WORKER_EXPERTS_SERVICE_H_

// The gRPC service by which people see where a group's experts lie and how loaded they are, and ask
// for a rebalance. Any rank of the group answers.

#include <memory>

#include "base/clock.h"
#include "base/metrics.h"
#include "decode_worker/expert_group.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace baton::decode_worker {

// The references must outlive the service, and the service its server.
std::unique_ptr<grpc::Service> MakeExpertsService(ExpertGroup& group, Clock& clock);

// Records what has happened since the last call. Loop's thread.
void RecordExperts(ExpertGroup& group, const ExpertMetrics& metrics, Clock& clock);

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_EXPERTS_SERVICE_H_
