#include "server/worker_client.h"

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "scheduler/identity.h"
#include "server/discovery.h"
#include "wire/deferred_inbox.h"

namespace baton::server {
namespace {

using scheduler::RouterEvent;

constexpr Duration kFirstBackoff = Duration::Millis(100);
constexpr Duration kMaxBackoff = Duration::Seconds(2);
constexpr Duration kMismatchBackoff = Duration::Seconds(5);
// Addresses in all, those included that only a living connection keeps.
constexpr size_t kMaxPlaces = 8192;

// Tells workers apart whatever they are called: role, instance, incarnation.
using WorkerKey = std::tuple<std::string, std::string, uint64_t>;

// An address with what is known of it.
struct Place {
  enum class Phase : uint8_t {
    kOpen,     // a stream is there or about to be
    kWaiting,  // for its timer
    kTwin,     // for the loss of the connection that its worker has by another address
  };
  std::shared_ptr<WorkerLink> link;
  int wanted = 0;  // entries that name it
  Phase phase = Phase::kOpen;
  bool joined = false;
  std::optional<WorkerKey> worker;  // kOpen: that it is the way to; kTwin: that it would be
  std::shared_ptr<grpc::Alarm> timer = std::make_shared<grpc::Alarm>();
  Duration backoff = kFirstBackoff;
  std::string last_failure;
  GaugeHandle up;
};

// An entry "dns:host:port".
struct Name {
  WorkerRole role;
  std::string entry;
  std::set<std::string> addresses;  // of the last answer
};

class WorkerClientImpl final : public WorkerClient, public LinkOwner {
 public:
  WorkerClientImpl(const scheduler::WorkerIdentity& own, const WorkerPlaces& places,
                   const wire::ChannelFactory& channels, Clock& clock, FrontendInbox& inbox,
                   Metrics& metrics, const Log& log)
      : channels_(channels),
        clock_(clock),
        inbox_([&inbox](RouterEvent&& event) { return inbox.TryPush(std::move(event)); }),
        metrics_(metrics),
        log_(log),
        agreed_(own) {
    std::vector<HostPort> hosts;
    ToDo to_do;
    for (const WorkerRole role : {WorkerRole::kDecode, WorkerRole::kPrefill}) {
      for (const std::string& entry :
           role == WorkerRole::kDecode ? places.decode : places.prefill) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (const std::optional<HostPort> name = SplitDnsEntry(entry)) {
          names_.push_back({role, entry, {}});
          hosts.push_back(*name);
        } else {
          Want(role, entry, &to_do);
        }
      }
    }
    Do(to_do);
    if (hosts.empty()) return;
    discovery_ = std::make_unique<Discovery>(
        std::move(hosts), places.dns_interval, places.resolver,
        [this](size_t name, const std::vector<std::string>& found) { OnAnswer(name, found); }, log);
  }

  ~WorkerClientImpl() override {
    discovery_.reset();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    inbox_.Close();
    // A stream that was just being opened is not seen by the first round.
    std::unique_lock<std::mutex> lock(mutex_);
    while (busy_ > 0) {
      ToDo to_do;
      for (const auto& [id, place] : places_) {
        to_do.cancel.push_back(place.timer);
        to_do.close.push_back(place.link);
      }
      lock.unlock();
      Do(to_do);
      lock.lock();
      idle_.wait_for(lock, std::chrono::milliseconds(20), [this] { return busy_ == 0; });
    }
  }

  // --- for the loop

  // To a worker whose connection broke, nothing is sent: the event for its loss is on its way.
  void Send(const scheduler::SendStart& start) override {
    if (const auto link = Find(start.decode)) link->Send(start.request);
  }
  void Send(const scheduler::SendCancel& cancel) override {
    if (const auto link = Find(cancel.decode)) link->Send(cancel.request);
  }
  void Refuse(const scheduler::RefuseWorker& refusal) override {
    const auto link = Find(refusal.worker);
    if (link == nullptr) return;
    log_.Warning("worker refused",
                 {{"worker", link->address()}, {"cause", std::string(refusal.status.message())}});
    link->CancelStream();
  }
  void Flush() override { inbox_.Flush(); }

  // --- for everybody

  scheduler::WorkerIdentity Agreed() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return agreed_;
  }

  std::vector<WorkerSummary> Summaries() const override {
    std::vector<WorkerSummary> summaries;
    std::lock_guard<std::mutex> lock(mutex_);
    for (const WorkerRole role : {WorkerRole::kDecode, WorkerRole::kPrefill}) {
      for (const auto& [id, place] : places_) {
        if (place.link->role() != role || place.phase == Place::Phase::kTwin) continue;
        summaries.push_back(place.link->Summary());
      }
      for (const Name& name : names_) {
        if (name.role != role || !name.addresses.empty()) continue;
        WorkerSummary summary;
        summary.role = RoleName(role);
        summary.instance = name.entry;
        summaries.push_back(std::move(summary));
      }
    }
    return summaries;
  }

  // --- for the links

  scheduler::WorkerIdentity Own() override { return Agreed(); }
  wire::DeferredInbox<RouterEvent>& inbox() override { return inbox_; }
  Clock& clock() override { return clock_; }

  absl::Status OnHello(WorkerLink& link, const scheduler::WorkerIdentity& worker) override {
    const std::string role = RoleName(link.role());
    if (worker.role != role) {
      return absl::FailedPreconditionError(role + " worker expected at " + link.address() +
                                           ", but a " + worker.role +
                                           " worker answers: check the router's lists of workers");
    }
    std::lock_guard<std::mutex> lock(mutex_);
    absl::Status compatible = scheduler::CheckCompatible(agreed_, worker);
    if (!compatible.ok()) return compatible;
    const bool learns = agreed_.model_hash.empty();
    scheduler::Adopt(worker, agreed_);
    if (learns) {
      agreed_.instance += " (with the model of " + worker.role + " " + worker.instance + ")";
    }
    Place& place = places_.at(link.id());
    place.worker = {worker.role, worker.instance, worker.incarnation};
    const auto [way, first] = ways_.emplace(*place.worker, link.id());
    if (first) return absl::OkStatus();
    return absl::AlreadyExistsError("connected already, as " +
                                    places_.at(way->second).link->address());
  }

  void OnJoined(WorkerLink& link) override {
    log_.Info("worker connected", {{"role", RoleName(link.role())}, {"worker", link.address()}});
    std::lock_guard<std::mutex> lock(mutex_);
    Place& place = places_.at(link.id());
    place.up.Set(1);
    place.joined = true;
    place.backoff = kFirstBackoff;
    place.last_failure.clear();
  }

  void OnEnded(WorkerLink& link, const absl::Status& status) override {
    ToDo to_do;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Place& place = places_.at(link.id());
      place.up.Set(0);
      place.joined = false;
      const bool twin = place.worker.has_value() && !IsWay(link.id(), *place.worker);
      if (!twin) LogEnd(place, status);
      if (place.worker.has_value() && !twin) LoseWay(*place.worker, &to_do);
      if (closing_) {
        // Nothing follows.
      } else if (place.wanted == 0) {
        Remove(link.id(), &to_do);
      } else if (twin && ways_.contains(*place.worker)) {
        place.phase = Place::Phase::kTwin;
        Forget(place);
        log_.Info("worker has another address", {{"role", RoleName(link.role())},
                                                 {"worker", link.address()},
                                                 {"cause", std::string(status.message())}});
      } else {
        const bool mismatch = absl::IsFailedPrecondition(status);
        Wait(place, mismatch ? kMismatchBackoff : place.backoff, &to_do);
      }
    }
    Do(to_do);
    Drop();
  }

 private:
  // What is to be done once the lock is not held any more.
  struct ToDo {
    struct Timer {
      WorkerId id;
      std::shared_ptr<grpc::Alarm> alarm;
      Duration wait;
    };
    std::vector<std::shared_ptr<WorkerLink>> open;
    std::vector<Timer> set;
    std::vector<std::shared_ptr<grpc::Alarm>> cancel;
    std::vector<std::shared_ptr<WorkerLink>> close;
  };

  void Do(const ToDo& to_do) {
    for (const auto& link : to_do.open) link->Open();
    for (const auto& [id, alarm, wait] : to_do.set) {
      alarm->Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                              gpr_time_from_nanos(wait.nanos(), GPR_TIMESPAN)),
                 [this, id = id](bool) {
                   OnTimer(id);
                   Drop();
                 });
    }
    for (const auto& alarm : to_do.cancel) alarm->Cancel();
    for (const auto& link : to_do.close) link->CancelStream();
  }

  void OnTimer(WorkerId id) {
    ToDo to_do;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto place = places_.find(id);
      if (place == places_.end() || place->second.phase != Place::Phase::kWaiting) return;
      Reopen(place->second, &to_do);
    }
    Do(to_do);
  }

  // The rest is called with mutex_ held.

  // `address` is named by one more entry.
  void Want(WorkerRole role, const std::string& address, ToDo* to_do) {
    const auto known = by_address_.find({role, address});
    if (known != by_address_.end()) {
      ++places_.at(known->second).wanted;
      return;
    }
    if (places_.size() >= kMaxPlaces) {
      log_.Warning("too many addresses of workers: one is left out",
                   {{"worker", address}, {"addresses", places_.size()}});
      return;
    }
    const WorkerId id(next_id_++);
    Place& place = places_[id];
    place.link = WorkerLink::Create(*this, id, role, address, channels_(address));
    place.wanted = 1;
    place.up = metrics_.WorkerUp(RoleName(role), address);
    by_address_.emplace(std::pair(role, address), id);
    Reopen(place, to_do);
  }

  // `address` is named by one entry less. While it is connected it stays.
  void Unwant(WorkerRole role, const std::string& address, ToDo* to_do) {
    const auto known = by_address_.find({role, address});
    if (known == by_address_.end()) return;  // it was one too many
    Place& place = places_.at(known->second);
    if (--place.wanted > 0 || place.joined) return;
    if (place.phase == Place::Phase::kOpen) {
      to_do->close.push_back(place.link);  // OnEnded removes it
    } else {
      Remove(known->second, to_do);
    }
  }

  bool IsWay(WorkerId id, const WorkerKey& worker) const {
    const auto way = ways_.find(worker);
    return way != ways_.end() && way->second == id;
  }

  // The worker is not connected any more: its other addresses are tried.
  void LoseWay(const WorkerKey& worker, ToDo* to_do) {
    ways_.erase(worker);
    for (auto& [id, place] : places_) {
      if (place.phase == Place::Phase::kTwin && place.worker == worker) Reopen(place, to_do);
    }
  }

  void Remove(WorkerId id, ToDo* to_do) {
    const auto at = places_.find(id);
    Place& place = at->second;
    log_.Info("worker given up: no longer named, and not connected",
              {{"role", RoleName(place.link->role())}, {"worker", place.link->address()}});
    Forget(place);
    by_address_.erase({place.link->role(), place.link->address()});
    to_do->cancel.push_back(std::move(place.timer));
    to_do->close.push_back(std::move(place.link));  // to be destroyed without the lock
    places_.erase(at);
  }

  // Takes its series away.
  void Forget(Place& place) {
    metrics_.ForgetWorkerUp(RoleName(place.link->role()), place.link->address());
    place.up = GaugeHandle();
  }

  void Reopen(Place& place, ToDo* to_do) {
    if (closing_) return;
    if (place.phase == Place::Phase::kTwin) {
      place.up = metrics_.WorkerUp(RoleName(place.link->role()), place.link->address());
    }
    place.phase = Place::Phase::kOpen;
    place.worker.reset();
    ++busy_;
    to_do->open.push_back(place.link);
  }

  void Wait(Place& place, Duration wait, ToDo* to_do) {
    place.phase = Place::Phase::kWaiting;
    place.backoff = std::min(place.backoff * 2, kMaxBackoff);
    place.worker.reset();
    place.timer = std::make_shared<grpc::Alarm>();
    ++busy_;
    to_do->set.push_back({place.link->id(), place.timer, wait});
  }

  void LogEnd(Place& place, const absl::Status& status) {
    // One line for each new cause, not one for each try.
    const std::string failure(status.message().data(), status.message().size());
    if (closing_ || failure == place.last_failure) return;
    place.last_failure = failure;
    log_.Warning("worker not connected", {{"role", RoleName(place.link->role())},
                                          {"worker", place.link->address()},
                                          {"cause", failure}});
  }

  // --- not holding it

  void OnAnswer(size_t index, const std::vector<std::string>& found) {
    ToDo to_do;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Name& name = names_[index];
      std::set<std::string> addresses(found.begin(), found.end());
      if (addresses == name.addresses) return;
      log_.Info("workers found", {{"role", RoleName(name.role)},
                                  {"name", name.entry},
                                  {"addresses", addresses.size()},
                                  {"before", name.addresses.size()}});
      for (const std::string& address : addresses) {
        if (!name.addresses.contains(address)) Want(name.role, address, &to_do);
      }
      for (const std::string& address : name.addresses) {
        if (!addresses.contains(address)) Unwant(name.role, address, &to_do);
      }
      name.addresses = std::move(addresses);
    }
    Do(to_do);
  }

  std::shared_ptr<WorkerLink> Find(WorkerId id) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto place = places_.find(id);
    return place == places_.end() ? nullptr : place->second.link;
  }

  void Drop() {
    std::lock_guard<std::mutex> lock(mutex_);
    --busy_;
    idle_.notify_all();
  }

  const wire::ChannelFactory channels_;
  Clock& clock_;
  wire::DeferredInbox<RouterEvent> inbox_;
  Metrics& metrics_;
  const Log log_;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  // The rest is guarded by mutex_.
  int busy_ = 0;  // streams and timers that gRPC still works on
  bool closing_ = false;
  // What every worker must match: the router's own identity, completed by the first worker's.
  scheduler::WorkerIdentity agreed_;
  WorkerId::Value next_id_ = 1;  // ids are not used again
  std::map<WorkerId, Place> places_;
  std::map<std::pair<WorkerRole, std::string>, WorkerId> by_address_;
  std::map<WorkerKey, WorkerId> ways_;  // to the workers that said hello and were not refused
  std::vector<Name> names_;

  std::unique_ptr<Discovery> discovery_;
};

}  // namespace

std::unique_ptr<WorkerClient> WorkerClient::Start(const scheduler::WorkerIdentity& own,
                                                  const WorkerPlaces& places,
                                                  const wire::ChannelFactory& channels,
                                                  Clock& clock, FrontendInbox& inbox,
                                                  Metrics& metrics, const Log& log) {
  return std::make_unique<WorkerClientImpl>(own, places, channels, clock, inbox, metrics, log);
}

}  // namespace baton::server
