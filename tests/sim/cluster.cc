#include "tests/sim/cluster.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace baton::sim {
namespace {

constexpr size_t kInboxCapacity = 1 << 20;

// Links between hosts.
enum class Direction : uint64_t { kRouterDecode, kDecodeRouter, kPrefillRouter, kCall, kReply };
uint64_t Link(Direction direction, int a, int b = 0) {
  return (static_cast<uint64_t>(direction) << 32) | (static_cast<uint64_t>(a) << 16) |
         static_cast<uint64_t>(b);
}

}  // namespace

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
  std::unique_ptr<StubRunner> runner;
  std::unique_ptr<SimTransport> transport;
  std::unique_ptr<decode_worker::DecodeInbox> inbox;
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
  }

  Cluster& cluster;
  const int index;
  bool joined = false;
  std::unique_ptr<StubRunner> runner;
  std::unique_ptr<SimTransport> transport;
  std::unique_ptr<prefill_worker::PrefillInbox> inbox;
  std::unique_ptr<prefill_worker::PrefillLoop> loop;
  scheduler::PrefillReport report;
};

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
  router_->tick = [router = router_.get()] {
    const scheduler::TickResult result = router->loop->Tick();
    router->loop->router().CheckInvariants();
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
  runner.fault_seed = rng_.Next();
  host.runner = std::make_unique<StubRunner>(runner, &host.clock);
  host.transport =
      fabric_.NewEndpoint(host.name, [this, &host] { ScheduleTick(host, queue_.now()); });
  host.inbox = std::make_unique<decode_worker::DecodeInbox>(kInboxCapacity);
  decode_worker::DecodeLoopOptions loop;
  loop.planner = options_.decode;
  loop.planner.eos_token_ids = {kEos};
  loop.planner.first_epoch = rng_.Next() >> 1 | 1;
  auto created = decode_worker::DecodeLoop::Create(loop, host.clock, *host.runner, *host.transport,
                                                   *host.inbox, host, host);
  BATON_CHECK_MSG(created.ok(), created.status().ToString());
  host.loop = std::move(*created);
  host.tick = [&host] {
    const scheduler::TickResult result = host.loop->Tick();
    host.loop->CheckInvariants();
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
  runner.fault_seed = rng_.Next();
  host.runner = std::make_unique<StubRunner>(runner, &host.clock);
  host.transport =
      fabric_.NewEndpoint(host.name, [this, &host] { ScheduleTick(host, queue_.now()); });
  host.inbox = std::make_unique<prefill_worker::PrefillInbox>(kInboxCapacity);
  prefill_worker::PrefillLoopOptions loop;
  loop.planner = options_.prefill;
  loop.handoff.staging_bytes = options_.staging_bytes;
  auto created = prefill_worker::PrefillLoop::Create(loop, host.clock, *host.runner,
                                                     *host.transport, *host.inbox, host, host);
  BATON_CHECK_MSG(created.ok(), created.status().ToString());
  host.loop = std::move(*created);
  host.tick = [&host] {
    const scheduler::TickResult result = host.loop->Tick();
    host.loop->CheckInvariants();
    return result;
  };
  host.up = true;
  host.draining = false;
  host.report = {};
  ScheduleTick(host, queue_.now());
  ConnectPrefill(worker);
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
    queue_.After(
        Duration::Micros(static_cast<int64_t>(200 + rng_.Below(20'000))),
        [this, worker, incarnation = host.incarnation] {
          const PrefillHost& p = *prefill_[static_cast<size_t>(worker)];
          if (p.joined && p.incarnation != incarnation) return;  // joined anew before
          PushToRouter(scheduler::PrefillLost{WorkerId(static_cast<uint32_t>(100 + worker)),
                                              absl::UnavailableError("connection reset")});
        });
  }
  host.up = false;
  host.next_tick = Tick::Infinite();
  host.loop.reset();
  host.transport.reset();
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

// --- connections --------------------------------------------------------------------------

scheduler::WorkerIdentity Cluster::IdentityOf(const Host& host, const char* role) const {
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.instance = host.name;
  identity.incarnation = host.incarnation;
  identity.model_name = "stub";
  identity.model_hash = absl::StrCat(options_.model_seed);
  identity.kv_format = "u64";
  identity.page_tokens = kPageTokens;
  identity.layers = kLayers;
  identity.revision = "sim";
  return identity;
}

void Cluster::ConnectDecode(int rank, Duration after) {
  queue_.After(after, [this, rank] {
    DecodeHost& host = *decode_[static_cast<size_t>(rank)];
    if (!host.up || host.connection != 0) return;
    host.connection = next_id_++;
    host.joined = false;
    PushToDecode(rank, scheduler::RouterJoined{RouterId(static_cast<uint32_t>(host.connection))});
  });
}

void Cluster::DisconnectDecode(int rank) {
  DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  const uint64_t connection = std::exchange(host.connection, 0);
  if (connection == 0) return;
  if (std::exchange(host.joined, false)) {
    queue_.After(Duration::Micros(static_cast<int64_t>(100 + rng_.Below(900))), [this, rank] {
      PushToRouter(scheduler::DecodeLost{WorkerId(static_cast<uint32_t>(rank)),
                                         absl::UnavailableError("connection reset")});
    });
  }
  const uint64_t incarnation = host.incarnation;
  queue_.After(Duration::Micros(static_cast<int64_t>(100 + rng_.Below(900))),
               [this, rank, connection, incarnation] {
                 DecodeHost& h = *decode_[static_cast<size_t>(rank)];
                 if (!h.up || h.incarnation != incarnation) return;
                 PushToDecode(rank,
                              scheduler::RouterLost{RouterId(static_cast<uint32_t>(connection))});
               });
}

void Cluster::ConnectPrefill(int worker) {
  queue_.After(Duration::Micros(static_cast<int64_t>(100 + rng_.Below(3000))), [this, worker] {
    PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
    if (!host.up || host.joined) return;
    host.joined = true;
    PushToRouter(scheduler::PrefillJoined{WorkerId(static_cast<uint32_t>(100 + worker)), host.name,
                                          IdentityOf(host, "prefill"),
                                          host.loop->initial_status()});
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
  host.busy_until = now + took;
  Note(static_cast<uint64_t>(now.nanos()), host.incarnation * 2 + (result.busy ? 1 : 0));
  if (result.busy) {
    ScheduleTick(host, host.busy_until);
  } else if (!result.wake_at.infinite()) {
    ScheduleTick(host, Tick::FromNanos(result.wake_at.nanos() - host.offset.nanos()));
  }
}

void Cluster::Note(uint64_t a, uint64_t b) {
  trace_ = Rng(trace_ ^ Rng(a).Next() ^ (b << 1)).Next();
}

// --- messages -----------------------------------------------------------------------------

void Cluster::Send(uint64_t link, std::function<void()> deliver) {
  Tick& last = link_last_[link];
  const Duration delay = Duration::Micros(static_cast<int64_t>(50 + rng_.Below(450)));
  last = std::max(last, queue_.now() + delay);
  queue_.At(last, std::move(deliver));
}

void Cluster::PushToRouter(scheduler::RouterEvent event) {
  Note(1, event.index());
  BATON_CHECK(router_->inbox.TryPush(std::move(event)));
  ScheduleTick(*router_, queue_.now());
}

void Cluster::PushToDecode(int rank, scheduler::DecodeEvent event) {
  DecodeHost& host = *decode_[static_cast<size_t>(rank)];
  Note(2 + static_cast<uint64_t>(rank), event.index());
  BATON_CHECK(host.inbox->TryPush(std::move(event)));
  ScheduleTick(host, queue_.now());
}

void Cluster::PushToPrefill(int worker, scheduler::PrefillEvent event) {
  PrefillHost& host = *prefill_[static_cast<size_t>(worker)];
  Note(1000 + static_cast<uint64_t>(worker), event.index());
  BATON_CHECK(host.inbox->TryPush(std::move(event)));
  ScheduleTick(host, queue_.now());
}

void Cluster::RouterHost::Send(scheduler::SendStart start) {
  const auto rank = static_cast<int>(start.decode.value());
  const uint64_t connection = cluster.decode_[static_cast<size_t>(rank)]->connection;
  cluster.Send(Link(Direction::kRouterDecode, rank), [this, rank, connection,
                                                      request = std::move(start.request)] {
    DecodeHost& host = *cluster.decode_[static_cast<size_t>(rank)];
    if (connection == 0 || host.connection != connection) return;
    cluster.PushToDecode(rank, scheduler::StartReceived{RouterId(static_cast<uint32_t>(connection)),
                                                        request, host.Local(cluster.queue_.now())});
  });
}

void Cluster::RouterHost::Send(scheduler::SendCancel cancel) {
  const auto rank = static_cast<int>(cancel.decode.value());
  const uint64_t connection = cluster.decode_[static_cast<size_t>(rank)]->connection;
  cluster.Send(Link(Direction::kRouterDecode, rank), [this, rank, connection,
                                                      request = cancel.request] {
    if (connection == 0 || cluster.decode_[static_cast<size_t>(rank)]->connection != connection) {
      return;
    }
    cluster.PushToDecode(
        rank, scheduler::CancelReceived{RouterId(static_cast<uint32_t>(connection)), request});
  });
}

void Cluster::DecodeHost::Send(scheduler::SendUpdate update) {
  const uint64_t sent_on = update.router.value();
  cluster.Send(Link(Direction::kDecodeRouter, index), [this, sent_on, update = update.update] {
    if (connection != sent_on) return;
    const WorkerId worker(static_cast<uint32_t>(index));
    if (!std::exchange(joined, true)) {
      cluster.PushToRouter(
          scheduler::DecodeJoined{worker, cluster.IdentityOf(*this, "decode"), update.status});
    }
    cluster.PushToRouter(
        scheduler::DecodeUpdated{worker, update, cluster.router_->Local(cluster.queue_.now())});
  });
}

void Cluster::DecodeHost::Send(scheduler::CallPrefill call) {
  const int worker = std::stoi(call.address.substr(call.address.find('-') + 1));
  cluster.calls_[call.call.key] = {index, worker, incarnation};
  cluster.Send(Link(Direction::kCall, index, worker), [this, worker, from = incarnation,
                                                       message = std::move(call.call)] {
    const auto it = cluster.calls_.find(message.key);
    if (it == cluster.calls_.end() || it->second.decode_incarnation != from) return;
    PrefillHost& host = *cluster.prefill_[static_cast<size_t>(worker)];
    if (!host.up) {
      return cluster.FailCall(message.key, true, Duration::Micros(100));
    }
    cluster.PushToPrefill(worker, scheduler::CallReceived{scheduler::CallerId(from), message,
                                                          host.Local(cluster.queue_.now())});
  });
}

void Cluster::DecodeHost::Send(scheduler::CancelPrefill cancel) {
  const int worker = std::stoi(cancel.address.substr(cancel.address.find('-') + 1));
  cluster.Send(
      Link(Direction::kCall, index, worker), [this, worker, from = incarnation, key = cancel.key] {
        if (!cluster.prefill_[static_cast<size_t>(worker)]->up || !cluster.calls_.contains(key))
          return;
        cluster.PushToPrefill(worker, scheduler::CallCancelled{scheduler::CallerId(from), key});
      });
}

void Cluster::PrefillHost::Send(scheduler::SendReply reply) {
  const auto it = cluster.calls_.find(reply.reply.key);
  if (it == cluster.calls_.end()) return;
  const int rank = it->second.decode;
  cluster.Send(Link(Direction::kReply, index, rank),
               [this, rank, from = incarnation, message = std::move(reply.reply)] {
                 if (!up || incarnation != from || cluster.calls_.erase(message.key) == 0) return;
                 const DecodeHost& host = *cluster.decode_[static_cast<size_t>(rank)];
                 cluster.PushToDecode(
                     rank, scheduler::PrefillReplied{message, host.Local(cluster.queue_.now())});
               });
}

void Cluster::PrefillHost::Send(scheduler::PublishStatus status) {
  cluster.Send(
      Link(Direction::kPrefillRouter, index), [this, from = incarnation, status = status.status] {
        if (!up || !joined || incarnation != from) return;
        cluster.PushToRouter(
            scheduler::PrefillUpdated{WorkerId(static_cast<uint32_t>(100 + index)), status});
      });
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
