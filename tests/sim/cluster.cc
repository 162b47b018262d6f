#include "tests/sim/cluster_hosts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::sim {
// --- life of hosts ------------------------------------------------------------------------

Cluster::Cluster(const ClusterOptions& options, EventQueue& queue, OnTokens on_tokens,
                 OnResult on_result)
    : options_(options),
      queue_(queue),
      rng_(options.seed),
      fabric_(queue, options.seed ^ 0xFAB, options.transport),
      router_(std::make_unique<RouterHost>(*this, std::move(on_tokens), std::move(on_result))) {
  router_->name = "router";
  router_->offset = Duration::Nanos(static_cast<int64_t>(rng_.Below(1'000'000'000'000)));
  router_->up = true;
  router_->loop = std::make_unique<server::FrontendLoop>(options_.router, router_->clock,
                                                         router_->inbox, *router_, *router_);
  router_->tick = [this, router = router_.get()] {
    const scheduler::TickResult result = router->loop->Tick();
    if (IsCheckDue(*router)) router->loop->router().CheckInvariants();
    return result;
  };
  for (int i = 0; i < options_.decode_ranks; ++i) {
    decode_.push_back(std::make_unique<DecodeHost>(*this, i));
    decode_.back()->name = absl::StrCat("decode-", i);
    StartDecode(i);
  }
  for (int i = 0; i < options_.prefill_workers; ++i) {
    prefill_.push_back(std::make_unique<PrefillHost>(*this, i));
    prefill_.back()->name = absl::StrCat("prefill-", i);
    StartPrefill(i);
  }
}

Cluster::~Cluster() = default;

void Cluster::StartDecode(int rank) {
  DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  host.incarnation = next_id_++;
  host.offset = Duration::Nanos(static_cast<int64_t>(rng_.Below(1'000'000'000'000)));
  host.clock.Set(host.Local(queue_.now()));
  host.busy_until = queue_.now();
  host.next_tick = Tick::Infinite();
  StubRunnerOptions runner;
  runner.total_pages = options_.decode_pages;
  runner.model_seed = options_.model_seed;
  runner.pass_cost = Duration::Micros(400);
  runner.row_cost = Duration::Micros(20);
  runner.failure_chance = options_.pass_failure;
  runner.slice_failure_chance = options_.slice_failure;
  runner.fault_seed = rng_.Next();
  host.runner = MakeRunner(host, runner);
  host.transport = MakeTransport(host);
  host.inbox = std::make_unique<decode_worker::DecodeInbox>(kInboxCapacity);
  decode_worker::DecodeLoopOptions loop;
  loop.planner = options_.decode;
  loop.planner.eos_token_ids = {kEos};
  loop.planner.first_epoch = rng_.Next() >> 1 | 1;
  auto created = decode_worker::DecodeLoop::Create(loop, host.clock, *host.runner, *host.transport,
                                                   *host.inbox, host, host);
  BATON_CHECK_MSG(created.ok(), created.status().ToString());
  host.loop = std::move(*created);
  host.tick = [this, &host] {
    const scheduler::TickResult result = host.loop->Tick();
    if (IsCheckDue(host)) host.loop->CheckInvariants();
    return result;
  };
  host.up = true;
  host.draining = false;
  host.report = {};
  ScheduleTick(host, queue_.now());
  ConnectDecode(rank, Duration::Micros(static_cast<int64_t>(100 + rng_.Below(3000))));
}

void Cluster::StartPrefill(int worker) {
  PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
  host.incarnation = next_id_++;
  host.offset = Duration::Nanos(static_cast<int64_t>(rng_.Below(1'000'000'000'000)));
  host.clock.Set(host.Local(queue_.now()));
  host.busy_until = queue_.now();
  host.next_tick = Tick::Infinite();
  StubRunnerOptions runner;
  runner.total_pages = options_.prefill_pages;
  runner.model_seed = options_.model_seed;
  runner.pass_cost = Duration::Micros(300);
  runner.row_cost = Duration::Micros(10);
  runner.failure_chance = options_.pass_failure;
  runner.slice_failure_chance = options_.slice_failure;
  runner.fault_seed = rng_.Next();
  host.runner = MakeRunner(host, runner);
  host.inbox = std::make_unique<prefill_worker::PrefillInbox>(kInboxCapacity);
  prefill_worker::PrefillLoopOptions loop;
  loop.planner = options_.prefill;
  loop.handoff.staging_bytes = options_.staging_bytes;
  auto created = prefill_worker::PrefillLoop::Create(loop, host.clock, *host.runner,
                                                     MakeTransport(host), *host.inbox, host, host);
  BATON_CHECK_MSG(created.ok(), created.status().ToString());
  host.loop = std::move(*created);
  host.tick = [this, &host] {
    const scheduler::TickResult result = host.loop->Tick();
    if (IsCheckDue(host)) host.loop->CheckInvariants();
    return result;
  };
  host.up = true;
  host.draining = false;
  host.report = {};
  ScheduleTick(host, queue_.now());
  ConnectPrefill(worker);
}

HostContext Cluster::ContextOf(Host& host) {
  return {host.name, &host.clock, [this, &host, incarnation = host.incarnation](Tick when) {
            if (host.incarnation != incarnation) return;
            ScheduleTick(host, Tick::FromNanos(when.nanos() - host.offset.nanos()));
          }};
}

std::unique_ptr<model::Runner> Cluster::MakeRunner(Host& host, const StubRunnerOptions& stub) {
  if (options_.make_runner != nullptr) return options_.make_runner(ContextOf(host));
  return std::make_unique<StubRunner>(stub, &host.clock);
}

std::unique_ptr<transport::KvTransport> Cluster::MakeTransport(Host& host) {
  if (options_.make_transport != nullptr) return options_.make_transport(ContextOf(host));
  return fabric_.NewEndpoint(host.name, [this, &host] { ScheduleTick(host, queue_.now()); });
}

// However a process ends, the others learn of it from their connections.
void Cluster::StopDecode(int rank, Duration down_for) {
  DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  DisconnectDecode(rank);
  const scheduler::CallerId caller(host.incarnation);
  host.up = false;
  host.next_tick = Tick::Infinite();
  host.loop.reset();
  host.transport.reset();
  host.inbox.reset();
  host.runner.reset();
  std::erase_if(calls_, [rank](const auto& entry) { return entry.second.decode == rank; });
  for (const auto& prefill : prefill_) {
    const uint64_t incarnation = prefill->incarnation;
    queue_.After(Duration::Micros(static_cast<int64_t>(200 + rng_.Below(20'000))),
                 [this, p = prefill.get(), incarnation, caller] {
                   if (!p->up || p->incarnation != incarnation) return;
                   PushToPrefill(p->index, scheduler::CallerLost{caller});
                 });
  }
  queue_.After(down_for, [this, rank] { StartDecode(rank); });
}

void Cluster::StopPrefill(int worker, Duration down_for) {
  PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
  if (std::exchange(host.joined, false)) {
    queue_.After(Duration::Micros(static_cast<int64_t>(200 + rng_.Below(20'000))),
                 [this, worker, incarnation = host.incarnation] {
                   const PrefillHost& p = *prefill_[static_cast<size_t>(worker)];
                   if (p.joined && p.incarnation != incarnation) return;  // joined anew before
                   PushToRouter(scheduler::PrefillLost{
                       WorkerId(kFirstPrefillId + static_cast<uint32_t>(worker)),
                       absl::UnavailableError("connection reset")});
                 });
  }
  host.up = false;
  host.next_tick = Tick::Infinite();
  host.loop.reset();  // and its transport
  host.inbox.reset();
  host.runner.reset();
  for (const auto& [key, call] : calls_) {
    if (call.prefill != worker) continue;
    FailCall(key, true, Duration::Micros(static_cast<int64_t>(200 + rng_.Below(20'000))));
  }
  queue_.After(down_for, [this, worker] { StartPrefill(worker); });
}

void Cluster::FailCall(RequestKey key, bool worker_lost, Duration after) {
  queue_.After(after, [this, key, worker_lost] {
    const auto it = calls_.find(key);
    if (it == calls_.end()) return;
    const int rank = it->second.decode;
    calls_.erase(it);
    PushToDecode(rank, scheduler::PrefillCallFailed{key, absl::UnavailableError("connection reset"),
                                                    worker_lost});
  });
}

// --- ticks --------------------------------------------------------------------------------

void Cluster::ScheduleTick(Host& host, Tick when) {
  when = std::max({when, host.busy_until, queue_.now()});
  if (!host.up || host.next_tick <= when) return;
  host.next_tick = when;
  queue_.At(when, [this, &host, when, incarnation = host.incarnation] {
    if (host.incarnation != incarnation || host.next_tick != when) return;
    host.next_tick = Tick::Infinite();
    if (host.busy_until > when) return ScheduleTick(host, host.busy_until);
    RunTick(host);
  });
}

void Cluster::RunTick(Host& host) {
  ++counts_.ticks;
  const Tick now = queue_.now();
  host.clock.Set(host.Local(now));
  const scheduler::TickResult result = host.tick();
  const Duration took = host.clock.Now() - host.Local(now);
  // A runner may have said that its host is busy for longer.
  host.busy_until = std::max(host.busy_until, now + took);
  Note(static_cast<uint64_t>(now.nanos()), host.incarnation * 2 + (result.busy ? 1 : 0));
  if (result.busy) {
    ScheduleTick(host, host.busy_until);
  } else if (!result.wake_at.infinite()) {
    ScheduleTick(host, Tick::FromNanos(result.wake_at.nanos() - host.offset.nanos()));
  }
}

bool Cluster::IsCheckDue(Host& host) const {
  return host.ticks++ % static_cast<uint64_t>(options_.check_every) == 0;
}

void Cluster::Note(uint64_t a, uint64_t b) {
  trace_ = Rng(trace_ ^ Rng(a).Next() ^ (b << 1)).Next();
}

// --- clients ------------------------------------------------------------------------------

bool Cluster::Arrive(scheduler::Arrived arrived, Duration until_deadline) {
  arrived.arrived_at = router_->Local(queue_.now());
  arrived.deadline = arrived.arrived_at + until_deadline;
  if (!router_->inbox.TryArrive(std::move(arrived))) return false;
  ScheduleTick(*router_, queue_.now());
  return true;
}

void Cluster::CancelClient(RequestId id) { PushToRouter(scheduler::ClientCancelled{id}); }
void Cluster::DrainRouter() { PushToRouter(scheduler::DrainRequested{}); }
bool Cluster::router_drained() const { return router_->loop->drained(); }
const scheduler::RouterReport& Cluster::router_report() const { return router_->report; }

// --- faults -------------------------------------------------------------------------------

void Cluster::CrashDecode(int rank, Duration down_for) {
  if (decode_[static_cast<size_t>(rank)]->up) StopDecode(rank, down_for);
}

void Cluster::CrashPrefill(int worker, Duration down_for) {
  if (prefill_[static_cast<size_t>(worker)]->up) StopPrefill(worker, down_for);
}

void Cluster::CutRouterFromDecode(int rank, Duration for_how_long) {
  if (!decode_[static_cast<size_t>(rank)]->up) return;
  DisconnectDecode(rank);
  ConnectDecode(rank, Duration::Millis(2) + for_how_long);  // after both sides have noticed
}

void Cluster::StallDecode(int rank, Duration for_how_long) {
  Host& host = *decode_[static_cast<size_t>(rank)];
  host.busy_until = std::max(host.busy_until, queue_.now() + for_how_long);
}

void Cluster::StallPrefill(int worker, Duration for_how_long) {
  Host& host = *prefill_[static_cast<size_t>(worker)];
  host.busy_until = std::max(host.busy_until, queue_.now() + for_how_long);
}

void Cluster::DrainDecode(int rank, Duration down_for) {
  DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  if (!host.up || host.draining) return;
  host.draining = true;
  PushToDecode(rank, scheduler::DrainRequested{});
  host.tick = [this, &host, rank, down_for, tick = host.tick] {
    const scheduler::TickResult result = tick();
    if (host.loop->drained()) {
      queue_.After(Duration(), [this, &host, rank, down_for, incarnation = host.incarnation] {
        if (host.up && host.incarnation == incarnation) StopDecode(rank, down_for);
      });
    }
    return result;
  };
}

void Cluster::DrainPrefill(int worker, Duration down_for) {
  PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
  if (!host.up || host.draining) return;
  host.draining = true;
  PushToPrefill(worker, scheduler::DrainRequested{});
  host.tick = [this, &host, worker, down_for, tick = host.tick] {
    const scheduler::TickResult result = tick();
    if (host.loop->drained()) {
      queue_.After(Duration::Millis(2),
                   [this, &host, worker, down_for, incarnation = host.incarnation] {
                     if (host.up && host.incarnation == incarnation) StopPrefill(worker, down_for);
                   });
    }
    return result;
  };
}

// --- checks -------------------------------------------------------------------------------

std::pair<int32_t, int32_t> Cluster::DecodePages(int rank) const {
  const DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  return {host.report.free_pages, host.report.total_pages};
}

std::pair<int32_t, int32_t> Cluster::PrefillPages(int worker) const {
  const PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
  return {host.report.free_pages, host.report.total_pages};
}

std::string Cluster::Leftovers() const {
  std::string left;
  const scheduler::RouterReport& router = router_->report;
  if (router.queued + router.running + router.releasing > 0) {
    absl::StrAppend(&left, "router: ", router.queued, " queued, ", router.running, " running, ",
                    router.releasing, " releasing; ");
  }
  for (const auto& host : decode_) {
    const scheduler::DecodeReport& r = host->report;
    if (!host->up || r.free_pages == r.total_pages) continue;
    absl::StrAppend(&left, host->name, ": ", r.free_pages, " of ", r.total_pages, " pages free; ");
  }
  for (const auto& host : prefill_) {
    const scheduler::PrefillReport& r = host->report;
    if (!host->up || (r.free_pages == r.total_pages && r.running == 0)) continue;
    absl::StrAppend(&left, host->name, ": ", r.free_pages, " of ", r.total_pages, " pages free; ");
  }
  if (!calls_.empty()) absl::StrAppend(&left, calls_.size(), " prefill calls without reply; ");
  return left;
}

}  // namespace baton::sim
