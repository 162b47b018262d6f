#ifndef BATON_TESTS_SIM_CLUSTER_HOSTS_H_
#define BATON_TESTS_SIM_CLUSTER_HOSTS_H_

// The simulated processes of a Cluster; seen by its own two source files only.

#include <memory>
#include <utility>

#include "tests/sim/cluster.h"

namespace baton::sim {

inline constexpr size_t kInboxCapacity = 1 << 20;
// A router's numbers of prefill workers begin here, those of decode ranks at 0.
inline constexpr uint32_t kFirstPrefillId = 10'000;

struct Cluster::RouterHost : Host, server::FrontendOutbox, server::FrontendObserver {
  RouterHost(Cluster& c, OnTokens tokens, OnResult result)
      : cluster(c), on_tokens(std::move(tokens)), on_result(std::move(result)) {}

  void Send(scheduler::SendStart start) override;
  void Send(scheduler::SendCancel cancel) override;
  void Deliver(scheduler::EmitTokens tokens) override { on_tokens(tokens); }
  void Deliver(scheduler::RequestResult result) override { on_result(result); }
  void Refuse(scheduler::RefuseWorker refusal) override {
    BATON_CHECK_MSG(false, refusal.status.ToString());
  }
  void OnStep(const scheduler::RouterReport& step) override {
    report = step;
    ClusterCounts& counts = cluster.counts_;
    counts.retries += step.retries;
    counts.refusals += step.refusals;
    counts.preemptions += step.preemptions;
    counts.token_conflicts += step.token_conflicts;
    counts.duplicate_tokens += step.duplicate_tokens;
    counts.release_timeouts += step.release_timeouts;
    counts.stale_messages += step.stale_messages;
  }

  Cluster& cluster;
  OnTokens on_tokens;
  OnResult on_result;
  server::FrontendInbox inbox{kInboxCapacity};
  std::unique_ptr<server::FrontendLoop> loop;
  scheduler::RouterReport report;
};

struct Cluster::DecodeHost : Host, decode_worker::DecodeOutbox, decode_worker::DecodeObserver {
  DecodeHost(Cluster& c, int i) : cluster(c), index(i) {}

  void Send(scheduler::SendUpdate update) override;
  void Send(scheduler::CallPrefill call) override;
  void Send(scheduler::CancelPrefill cancel) override;
  void OnStep(const scheduler::DecodeReport& step,
              const decode_worker::LandingReport& landing) override {
    report = step;
    ClusterCounts& counts = cluster.counts_;
    counts.release_timeouts += step.release_timeouts;
    counts.handoff_timeouts += step.handoff_timeouts;
    counts.handoff_corrupt += step.handoff_corrupt;
    counts.pass_failures += step.pass_failures;
    counts.stale_messages += step.stale_messages;
    counts.decode_lookup_tokens += step.lookup_tokens;
    counts.decode_hit_tokens += step.hit_tokens;
    counts.evicted_pages += step.evicted_pages;
    counts.landing.messages += landing.messages;
    counts.landing.bytes += landing.bytes;
    counts.landing.unknown_epoch += landing.unknown_epoch;
    counts.landing.bad_header += landing.bad_header;
    counts.landing.bad_checksum += landing.bad_checksum;
    counts.landing.duplicate += landing.duplicate;
  }

  Cluster& cluster;
  const int index;
  uint64_t connection = 0;  // to the router; 0: none
  bool joined = false;      // the router knows of the connection
  std::unique_ptr<model::Runner> runner;
  std::unique_ptr<decode_worker::DecodeInbox> inbox;  // the transport wakes it
  std::unique_ptr<transport::KvTransport> transport;
  std::unique_ptr<decode_worker::DecodeLoop> loop;
  scheduler::DecodeReport report;
};

struct Cluster::PrefillHost : Host, prefill_worker::PrefillOutbox, prefill_worker::PrefillObserver {
  PrefillHost(Cluster& c, int i) : cluster(c), index(i) {}

  void Send(scheduler::SendReply reply) override;
  void Send(scheduler::PublishStatus status) override;
  void OnStep(const scheduler::PrefillReport& step) override {
    report = step;
    cluster.counts_.pass_failures += step.pass_failures;
    cluster.counts_.stale_messages += step.stale_messages;
    cluster.counts_.prefill_lookup_tokens += step.lookup_tokens;
    cluster.counts_.prefill_hit_tokens += step.hit_tokens;
    cluster.counts_.evicted_pages += step.evicted_pages;
  }

  Cluster& cluster;
  const int index;
  bool joined = false;
  std::unique_ptr<model::Runner> runner;
  std::unique_ptr<prefill_worker::PrefillInbox> inbox;  // the loop's transport wakes it
  std::unique_ptr<prefill_worker::PrefillLoop> loop;
  scheduler::PrefillReport report;
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_CLUSTER_HOSTS_H_
