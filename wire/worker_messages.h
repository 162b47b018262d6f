#ifndef BATON_WIRE_WORKER_MESSAGES_H_
#define BATON_WIRE_WORKER_MESSAGES_H_

// scheduler/messages.h <-> proto/baton/v1/worker.proto, field by field. Both the router and the
// workers need both directions, and neither may include the other, hence this folder. Pure
// functions; any thread. ToProto overwrites `out`. FromProto never fails: both ends run the same
// revision, and what a field means is checked by the planners that act on it (an unknown enum value
// becomes the failing one).

#include "absl/status/status.h"
#include "proto/baton/v1/worker.pb.h"
#include "scheduler/messages.h"

namespace baton::wire {

void ToProto(const scheduler::WorkerIdentity& in, v1::WorkerIdentity* out);
void ToProto(const RequestKey& in, v1::RequestKey* out);
void ToProto(const absl::Status& in, v1::StatusValue* out);
void ToProto(const scheduler::SamplingParams& in, v1::SamplingParams* out);
void ToProto(const scheduler::StartRequest& in, v1::StartRequest* out);
void ToProto(const scheduler::DecodeUpdate& in, v1::DecodeUpdate* out);
void ToProto(const scheduler::PrefillCall& in, v1::PrefillCall* out);
void ToProto(const scheduler::PrefillReply& in, v1::PrefillReply* out);
void ToProto(const scheduler::PrefillStatus& in, v1::PrefillStatus* out);

scheduler::WorkerIdentity FromProto(const v1::WorkerIdentity& in);
RequestKey FromProto(const v1::RequestKey& in);
absl::Status FromProto(const v1::StatusValue& in);
scheduler::SamplingParams FromProto(const v1::SamplingParams& in);
scheduler::StartRequest FromProto(const v1::StartRequest& in);
scheduler::DecodeUpdate FromProto(const v1::DecodeUpdate& in);
scheduler::PrefillCall FromProto(const v1::PrefillCall& in);
scheduler::PrefillReply FromProto(const v1::PrefillReply& in);
scheduler::PrefillStatus FromProto(const v1::PrefillStatus& in);

}  // namespace baton::wire

#endif  // BATON_WIRE_WORKER_MESSAGES_H_
