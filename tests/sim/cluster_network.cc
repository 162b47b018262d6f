// Cluster, continued: connections between the hosts, and what travels over them.

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/sim/cluster_hosts.h"

namespace baton::sim {
namespace {

// Links between hosts.
enum class Direction : uint64_t { kRouterDecode, kDecodeRouter, kPrefillRouter, kCall, kReply };
uint64_t Link(Direction direction, int a, int b = 0) {
  return (static_cast<uint64_t>(direction) << 32) | (static_cast<uint64_t>(a) << 16) |
         static_cast<uint64_t>(b);
}

}  // namespace

// --- connections --------------------------------------------------------------------------

scheduler::WorkerIdentity Cluster::IdentityOf(const Host& host, const model::RunnerInfo& info,
                                              const char* role) {
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.instance = host.name;
  identity.incarnation = host.incarnation;
  identity.model_name = info.model_name;
  identity.model_hash = info.model_hash;
  identity.kv_format = info.kv_format;
  identity.page_tokens = info.page_tokens;
  identity.layers = info.layers;
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
    PushToRouter(scheduler::PrefillJoined{
        WorkerId(kFirstPrefillId + static_cast<uint32_t>(worker)), host.name,
        IdentityOf(host, host.runner->info(), "prefill"), host.loop->initial_status()});
  });
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
      cluster.PushToRouter(scheduler::DecodeJoined{
          worker, IdentityOf(*this, runner->info(), "decode"), update.status});
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
  cluster.Send(Link(Direction::kPrefillRouter, index),
               [this, from = incarnation, status = status.status] {
                 if (!up || !joined || incarnation != from) return;
                 cluster.PushToRouter(scheduler::PrefillUpdated{
                     WorkerId(kFirstPrefillId + static_cast<uint32_t>(index)), status});
               });
}

}  // namespace baton::sim
