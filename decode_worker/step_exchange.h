#ifndef BATON_DECODE_WORKER_STEP_EXCHANGE_H_
#define BATON_DECODE_WORKER_STEP_EXCHANGE_H_

// How the ranks of an expert-parallel group begin a step: everybody's header goes to everybody,
// and, in the few steps in which somebody has any, mail goes from rank to rank. All ranks call it
// together; whoever has a reason begins and rings for the others.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "scheduler/expert_switch.h"
#include "transport/collectives.h"

namespace baton::decode_worker {

// Travels as it is, so it has no padding that differs.
struct StepHeader {
  uint64_t step = 0;     // the same on all ranks
  uint64_t version = 0;  // of the experts' placement before this step; the same on all ranks
  scheduler::SwitchNotice notice;  // the leader's
  int32_t rows = 0;                // of the pass that follows
  uint32_t has_mail = 0;
};
static_assert(sizeof(StepHeader) == 40);

class StepExchange {
 public:
  // `collectives` outlives the exchange.
  StepExchange(transport::Collectives& collectives, Duration timeout);

  // `mail`, [ranks], is for each rank; nothing for this one. Errors are the collectives', or
  // INTERNAL where ranks disagree on the step or the placement: the group is broken.
  absl::Status Run(const StepHeader& mine, const std::vector<std::vector<std::byte>>& mail);

  // Of the last Run. Those of absent ranks are all zero.
  const StepHeader& header(int32_t rank) const { return headers_[static_cast<size_t>(rank)]; }
  int64_t rows() const { return rows_; }            // of all ranks
  int32_t most_rows() const { return most_rows_; }  // of one rank
  std::span<const std::byte> mail_from(int32_t rank) const;

 private:
  absl::Status Break(absl::Status why);
  absl::Status CheckHeaders(const StepHeader& mine);
  absl::Status ExchangeMail(const std::vector<std::vector<std::byte>>& mail);

  transport::Collectives& collectives_;
  const Duration timeout_;
  std::vector<StepHeader> headers_;  // [ranks]
  int64_t rows_ = 0;
  int32_t most_rows_ = 0;
  bool any_mail_ = false;
  std::vector<uint64_t> sizes_;        // [ranks from, ranks to] bytes of mail
  std::vector<size_t> receive_bytes_;  // [ranks]
  std::vector<std::byte> sent_;        // rank after rank
  std::vector<std::byte> received_;
};

}  // namespace baton::decode_worker

#endif  // BATON_DECODE_WORKER_STEP_EXCHANGE_H_
