#ifndef BATON_TESTS_SCHEDULER_DESCRIBE_H_
#define BATON_TESTS_SCHEDULER_DESCRIBE_H_

// What the property tests share: actions as text, and random failures.

#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "scheduler/decode_planner.h"
#include "scheduler/prefill_planner.h"
#include "scheduler/router.h"

namespace baton::scheduler {

// A short text for each action: equal logs, equal decisions.
struct Describe {
  std::string operator()(const SendStart& a) const {
    return absl::StrCat("start ", a.decode.value(), " ", a.request.key.request.value(), ".",
                        a.request.key.attempt, " via ", a.request.prefill_address);
  }
  std::string operator()(const SendCancel& a) const {
    return absl::StrCat("cancel ", a.request.key.request.value());
  }
  std::string operator()(const EmitTokens& a) const {
    return absl::StrCat("emit ", a.id.value(), " ", a.first_index, "+", a.tokens.size());
  }
  std::string operator()(const RequestResult& a) const {
    return absl::StrCat("result ", a.id.value(), " ", a.status.ToString());
  }
  std::string operator()(const RefuseWorker& a) const {
    return absl::StrCat("refuse ", a.worker.value());
  }
  std::string operator()(const OpenLanding& a) const {
    return absl::StrCat("open ", a.epoch.value(), " ", a.pages.size());
  }
  std::string operator()(const CloseLanding& a) const {
    return absl::StrCat("close ", a.epoch.value());
  }
  std::string operator()(const CallPrefill& a) const {
    return absl::StrCat("call ", a.call.key.request.value());
  }
  std::string operator()(const CancelPrefill& a) const {
    return absl::StrCat("uncall ", a.key.request.value());
  }
  std::string operator()(const SendUpdate& a) const {
    return absl::StrCat("update ", a.router.value(), " ", a.update.chunks.size(), " ",
                        a.update.ends.size(), " ", a.update.released.size(), " ",
                        a.update.status.credits_granted, " ", a.update.status.free_pages);
  }
  std::string operator()(const RunDecodePass& a) const { return Pass(a.plan); }
  std::string operator()(const OpenHandoff& a) const {
    return absl::StrCat("handoff ", a.key.request.value());
  }
  std::string operator()(const AbortHandoff& a) const {
    return absl::StrCat("abort ", a.key.request.value());
  }
  std::string operator()(const RunPrefillPass& a) const {
    return absl::StrCat(Pass(a.plan), " ships ", a.handoffs.size());
  }
  std::string operator()(const SendReply& a) const {
    return absl::StrCat("reply ", a.reply.key.request.value(), " ", a.reply.status.ToString());
  }
  std::string operator()(const PublishStatus& a) const {
    return absl::StrCat("status ", a.status.free_pages, " ", a.status.queued_tokens);
  }
  static std::string Pass(const BatchPlan& plan) {
    std::string text = absl::StrCat("pass ", plan.step);
    for (const SequenceSlice& s : plan.slices) {
      absl::StrAppend(&text, " ", s.key.request.value(), ":", s.first_position, "+", s.row_count);
    }
    return text;
  }
};

template <typename Sink>
void Log(const Sink& sink, std::string* log) {
  for (const auto& action : sink.actions)
    absl::StrAppend(log, std::visit(Describe(), action), "\n");
}

inline absl::Status RandomStatus(Rng& rng) {
  switch (rng.Below(6)) {
    case 0:
      return absl::ResourceExhaustedError("r");
    case 1:
      return absl::UnavailableError("r");
    case 2:
      return absl::InternalError("r");
    case 3:
      return absl::CancelledError("r");
    case 4:
      return absl::InvalidArgumentError("r");
    default:
      return absl::DeadlineExceededError("r");
  }
}

}  // namespace baton::scheduler

#endif  // BATON_TESTS_SCHEDULER_DESCRIBE_H_
