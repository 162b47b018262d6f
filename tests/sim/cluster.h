#ifndef BATON_TESTS_SIM_CLUSTER_H_
#define BATON_TESTS_SIM_CLUSTER_H_

// A router, prefill workers and decode ranks in simulated time: the shipped loops with stub runners
// (or others), a network with delays between them, and ways to hurt them. Every host has its own
// clock with its own origin, so an instant that leaked from one process to another would be
// noticed. One thread.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "decode_worker/loop.h"
#include "prefill_worker/loop.h"
#include "server/frontend_loop.h"
#include "tests/sim/event_queue.h"
#include "tests/sim/sim_transport.h"
#include "tests/sim/stub_runner.h"

namespace baton::sim {

// What a host's runner and transport are made from. The host outlives both.
struct HostContext {
  std::string name;  // "prefill-0", "decode-1", ...
  ManualClock* clock = nullptr;
  // Ticks the host's loop at this instant of its clock, or soon after when it is busy then.
  std::function<void(Tick)> tick_at;
};

struct ClusterOptions {
  uint64_t seed = 1;
  int prefill_workers = 4;
  int decode_ranks = 4;
  int32_t prefill_pages = 96;
  int32_t decode_pages = 96;
  uint64_t model_seed = 1;
  double pass_failure = 0;   // chance of each pass
  double slice_failure = 0;  // chance of each slice of a pass, alone
  TransportFaults transport;
  scheduler::RouterOptions router;
  scheduler::PrefillPlannerOptions prefill;
  scheduler::DecodePlannerOptions decode;
  uint64_t staging_bytes = 4096;
  int check_every = 1;  // ticks of a host: all invariants of its planner
  // Null: a StubRunner, a SimTransport.
  std::function<std::unique_ptr<model::Runner>(const HostContext&)> make_runner;
  std::function<std::unique_ptr<transport::KvTransport>(const HostContext&)> make_transport;
};

// Sums of what the loops reported.
struct ClusterCounts {
  uint64_t ticks = 0;
  uint64_t retries = 0;
  uint64_t refusals = 0;
  uint64_t preemptions = 0;
  uint64_t token_conflicts = 0;
  uint64_t duplicate_tokens = 0;
  uint64_t release_timeouts = 0;  // router's and decode's
  uint64_t handoff_timeouts = 0;
  uint64_t handoff_corrupt = 0;
  uint64_t pass_failures = 0;
  uint64_t stale_messages = 0;
  uint64_t prefill_lookup_tokens = 0;
  uint64_t prefill_hit_tokens = 0;
  uint64_t decode_lookup_tokens = 0;
  uint64_t decode_hit_tokens = 0;
  uint64_t evicted_pages = 0;  // prefill's and decode's
  decode_worker::LandingReport landing;
};

class Cluster {
 public:
  using OnTokens = std::function<void(const scheduler::EmitTokens&)>;
  using OnResult = std::function<void(const scheduler::RequestResult&)>;

  Cluster(const ClusterOptions& options, EventQueue& queue, OnTokens on_tokens, OnResult on_result);
  ~Cluster();

  // The client's side. False: refused at the door.
  bool Arrive(scheduler::Arrived arrived, Duration until_deadline);
  void CancelClient(RequestId id);
  void DrainRouter();

  // Faults. All heal by themselves.
  void CrashDecode(int rank, Duration down_for);
  void CrashPrefill(int worker, Duration down_for);
  void CutRouterFromDecode(int rank, Duration for_how_long);
  void StallDecode(int rank, Duration for_how_long);
  void StallPrefill(int worker, Duration for_how_long);
  // Finishes its work, goes away, and comes back.
  void DrainDecode(int rank, Duration down_for);
  void DrainPrefill(int worker, Duration down_for);
  void StopTransportFaults() { fabric_.StopFaults(); }

  // What is wrong when nothing runs any more: pages held, requests forgotten; empty when all is
  // well.
  std::string Leftovers() const;
  bool router_drained() const;

  const ClusterCounts& counts() const { return counts_; }
  const TransportCounts& transport_counts() const { return fabric_.counts(); }
  uint64_t trace() const { return trace_; }
  const scheduler::RouterReport& router_report() const;
  // Free and total pages of a live worker, as last reported; {0, 0} when it is down.
  std::pair<int32_t, int32_t> DecodePages(int rank) const;
  std::pair<int32_t, int32_t> PrefillPages(int worker) const;

 private:
  // What every simulated process has.
  struct Host {
    std::string name;
    ManualClock clock;
    Duration offset;           // of its clock to simulated time
    uint64_t incarnation = 0;  // changes with every start
    bool up = false;
    bool draining = false;
    Duration restart_after;  // once drained
    Tick busy_until;
    uint64_t ticks = 0;
    Tick next_tick = Tick::Infinite();
    std::function<scheduler::TickResult()> tick;  // the loop's Tick and its checks
    Tick Local(baton::Tick now) const { return now + offset; }
  };
  struct RouterHost;
  struct DecodeHost;
  struct PrefillHost;
  struct PendingCall {
    int decode = 0;
    int prefill = 0;
    uint64_t decode_incarnation = 0;
  };

  void StartDecode(int rank);
  void StartPrefill(int worker);
  void StopDecode(int rank, Duration down_for);
  void StopPrefill(int worker, Duration down_for);
  void ConnectDecode(int rank, Duration after);
  void ConnectPrefill(int worker);
  void DisconnectDecode(int rank);

  HostContext ContextOf(Host& host);
  std::unique_ptr<model::Runner> MakeRunner(Host& host, const StubRunnerOptions& stub);
  std::unique_ptr<transport::KvTransport> MakeTransport(Host& host);

  void ScheduleTick(Host& host, Tick when);
  void RunTick(Host& host);
  bool IsCheckDue(Host& host) const;
  void Note(uint64_t a, uint64_t b);  // into the trace

  // Delivers in order on each link, after a random delay.
  void Send(uint64_t link, std::function<void()> deliver);
  void PushToRouter(scheduler::RouterEvent event);
  void PushToDecode(int rank, scheduler::DecodeEvent event);
  void PushToPrefill(int worker, scheduler::PrefillEvent event);
  void FailCall(RequestKey key, bool worker_lost, Duration after);
  static scheduler::WorkerIdentity IdentityOf(const Host& host, const model::RunnerInfo& info,
                                              const char* role);

  const ClusterOptions options_;
  EventQueue& queue_;
  Rng rng_;
  SimFabric fabric_;
  ClusterCounts counts_;
  uint64_t trace_ = 0;
  uint64_t next_id_ = 1;  // of incarnations and connections
  std::map<uint64_t, Tick> link_last_;
  std::map<RequestKey, PendingCall> calls_;
  std::unique_ptr<RouterHost> router_;
  std::vector<std::unique_ptr<DecodeHost>> decode_;
  std::vector<std::unique_ptr<PrefillHost>> prefill_;
};

}  // namespace baton::sim

#endif  // BATON_TESTS_SIM_CLUSTER_H_
