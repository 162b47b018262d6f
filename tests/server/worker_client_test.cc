// Which workers a router is connected to while names change and connections break.

#include "server/worker_client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <variant>

#include "decode_worker/service.h"
#include "prefill_worker/service.h"
#include "server/grpc_host.h"
#include "tests/server/stub_cluster.h"
#include "transport/inproc/inproc_transport.h"

namespace baton::server {
namespace {

using ::testing::ElementsAre;

scheduler::WorkerIdentity Identity(const std::string& role, const std::string& instance) {
  scheduler::WorkerIdentity identity;
  identity.role = role;
  identity.instance = instance;
  identity.incarnation = 1;
  identity.model_hash = "aaaa";
  identity.kv_format = "bf16";
  identity.page_tokens = sim::kPageTokens;
  identity.layers = sim::kLayers;
  identity.revision = "r1";
  return identity;
}

// What names mean, as the test says.
class Names final : public NameResolver {
 public:
  absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host) override {
    std::lock_guard<std::mutex> lock(mutex_);
    ++asked_;
    if (down_) return absl::UnavailableError("the name server is down");
    return names_[host];
  }
  void Cancel() override {}

  void Set(const std::string& host, const std::vector<std::string>& ips) {
    std::lock_guard<std::mutex> lock(mutex_);
    names_[host] = ips;
  }
  void SetDown(bool down) {
    std::lock_guard<std::mutex> lock(mutex_);
    down_ = down;
  }
  // Everybody has heard of the last change.
  void WaitUntilTold() {
    const int before = asked_;
    ASSERT_TRUE(StubCluster::WaitFor([&] { return asked_ >= before + 4; }));
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::vector<std::string>> names_;  // guarded by mutex_
  bool down_ = false;                                      // guarded by mutex_
  std::atomic<int> asked_{0};
};

// A decode rank that gets a place on the network and leaves it.
class StubDecode {
 public:
  StubDecode(transport::InprocFabric& fabric, const scheduler::WorkerIdentity& identity,
             Clock& clock, Metrics& metrics) {
    auto worker = decode_worker::DecodeWorker::Start(
        {.identity = identity}, clock,
        std::make_unique<sim::StubRunner>(sim::StubRunnerOptions{}, nullptr),
        fabric.NewEndpoint(identity.instance),
        [](const std::string&) -> std::shared_ptr<grpc::Channel> {
          return grpc::CreateChannel("127.0.0.1:1", grpc::InsecureChannelCredentials());
        },
        metrics.decode(), Log());
    BATON_CHECK(worker.ok());
    worker_ = *std::move(worker);
    host_ = *GrpcHost::Start({}, {worker_->service()});
  }
  ~StubDecode() {
    worker_->CloseStreams();
    host_.reset();
  }
  std::shared_ptr<grpc::Channel> Channel() { return host_->LoopbackChannel(); }
  void Drain() { worker_->Drain(); }

 private:
  std::unique_ptr<decode_worker::DecodeWorker> worker_;
  std::unique_ptr<GrpcHost> host_;
};

class WorkerClientTest : public ::testing::Test {
 protected:
  // `addresses` lead to a new worker.
  void StartWorker(const std::string& instance, const std::vector<std::string>& addresses,
                   uint64_t incarnation = 1) {
    scheduler::WorkerIdentity identity = Identity("decode", instance);
    identity.incarnation = incarnation;
    auto worker = std::make_shared<StubDecode>(fabric_, identity, clock_, metrics_);
    std::lock_guard<std::mutex> lock(mutex_);
    for (const std::string& address : addresses) network_[address] = worker;
    workers_[instance] = worker;
  }
  void StopWorker(const std::string& instance) {
    std::shared_ptr<StubDecode> gone;
    std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(workers_[instance]);
    std::erase_if(network_, [&](const auto& entry) { return entry.second == gone; });
  }

  void Connect(const std::vector<std::string>& decode) {
    const auto channels = [this](const std::string& address) {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto at = network_.find(address);
      return at != network_.end()
                 ? at->second->Channel()
                 : grpc::CreateChannel("127.0.0.1:1", grpc::InsecureChannelCredentials());
    };
    scheduler::WorkerIdentity own = Identity("router", "router");
    own.model_hash.clear();
    WorkerPlaces places;
    places.decode = decode;
    places.dns_interval = Duration::Millis(2);
    places.resolver = names_;
    client_ = WorkerClient::Start(own, places, channels, clock_, inbox_, metrics_, Log());
  }

  // The addresses that are connected, as the summaries, the metrics and the events say.
  std::vector<std::string> Connected() {
    std::vector<std::string> connected;
    for (const WorkerSummary& worker : client_->Summaries()) {
      if (worker.connected) connected.push_back(worker.instance);
    }
    return connected;
  }
  bool WaitForConnected(const std::vector<std::string>& addresses) {
    return StubCluster::WaitFor([&] {
      client_->Flush();
      TakeEvents();
      return Connected() == addresses && joined_.size() == addresses.size();
    });
  }
  // WorkerIds that have joined and are not lost.
  void TakeEvents() {
    std::vector<scheduler::RouterEvent> events;
    inbox_.queue().DrainInto(events);
    for (const scheduler::RouterEvent& event : events) {
      if (const auto* joined = std::get_if<scheduler::DecodeJoined>(&event)) {
        EXPECT_TRUE(joined_.emplace(joined->worker, joined->identity.instance).second);
      } else if (const auto* lost = std::get_if<scheduler::DecodeLost>(&event)) {
        EXPECT_EQ(joined_.erase(lost->worker), 1u);
      }
    }
  }
  double Up(const std::string& address) {
    const std::string text = "\n" + metrics_.Render();
    const std::string series = "\nbaton_worker_up{role=\"decode\",worker=\"" + address + "\"} ";
    const size_t at = text.find(series);
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size()));
  }

  MonotonicClock clock_;
  Metrics metrics_{{.version = "0", .revision = "r1", .model_name = "stub"}};
  transport::InprocFabric fabric_;
  FrontendInbox inbox_{1024};
  const std::shared_ptr<Names> names_ = std::make_shared<Names>();
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<StubDecode>> network_;  // guarded by mutex_
  std::map<std::string, std::shared_ptr<StubDecode>> workers_;
  std::map<WorkerId, std::string> joined_;
  std::unique_ptr<WorkerClient> client_;
};

TEST_F(WorkerClientTest, WorkersComeAndGoWithTheirName) {
  StartWorker("a", {"10.0.0.1:7"});
  StartWorker("b", {"10.0.0.2:7"});
  StartWorker("c", {"static:7"});
  Connect({"dns:decode:7", "static:7"});
  ASSERT_TRUE(WaitForConnected({"static:7"}));
  // A name without addresses is shown, so that somebody looks for the mistake.
  EXPECT_EQ(client_->Summaries().back().instance, "dns:decode:7");
  EXPECT_FALSE(client_->Summaries().back().connected);

  names_->Set("decode", {"10.0.0.1", "10.0.0.2"});
  ASSERT_TRUE(WaitForConnected({"static:7", "10.0.0.1:7", "10.0.0.2:7"}));
  EXPECT_EQ(client_->Summaries().size(), 3u);
  EXPECT_EQ(Up("10.0.0.2:7"), 1);

  // The worker goes first, its name later.
  StopWorker("b");
  ASSERT_TRUE(WaitForConnected({"static:7", "10.0.0.1:7"}));
  EXPECT_EQ(Up("10.0.0.2:7"), 0);
  names_->Set("decode", {"10.0.0.1"});
  ASSERT_TRUE(StubCluster::WaitFor([&] { return Up("10.0.0.2:7") == -1; }));
  EXPECT_EQ(client_->Summaries().size(), 2u);
  EXPECT_EQ(Up("10.0.0.1:7"), 1);
}

TEST_F(WorkerClientTest, ALivingWorkerIsKeptWhateverTheNameServerSays) {
  StartWorker("a", {"10.0.0.1:7"});
  names_->Set("decode", {"10.0.0.1"});
  Connect({"dns:decode:7"});
  ASSERT_TRUE(WaitForConnected({"10.0.0.1:7"}));
  const WorkerId id = joined_.begin()->first;
  names_->SetDown(true);
  names_->WaitUntilTold();
  names_->SetDown(false);
  names_->Set("decode", {});
  names_->WaitUntilTold();
  names_->Set("decode", {"10.0.0.1"});  // back: still the same connection
  names_->WaitUntilTold();
  names_->Set("decode", {});
  names_->WaitUntilTold();
  TakeEvents();
  EXPECT_THAT(Connected(), ElementsAre("10.0.0.1:7"));
  ASSERT_EQ(joined_.size(), 1u);
  EXPECT_EQ(joined_.begin()->first, id);
  // Nobody names it any more: it drains, ends its streams, and is forgotten.
  workers_["a"]->Drain();
  ASSERT_TRUE(StubCluster::WaitFor([&] { return client_->Summaries()[0].draining; }));
  EXPECT_THAT(Connected(), ElementsAre("10.0.0.1:7"));
  StopWorker("a");
  ASSERT_TRUE(WaitForConnected({}));
  ASSERT_TRUE(StubCluster::WaitFor([&] { return Up("10.0.0.1:7") == -1; }));
}

TEST_F(WorkerClientTest, AWorkerWithSeveralAddressesCountsOnce) {
  StartWorker("a", {"10.0.0.1:7", "[fd00::1]:7", "alias:7"});
  names_->Set("decode", {"10.0.0.1", "fd00::1"});
  Connect({"alias:7"});
  ASSERT_TRUE(WaitForConnected({"alias:7"}));
  client_.reset();
  TakeEvents();
  joined_.clear();

  // All three at once: one wins, and the others are not shown as missing.
  Connect({"dns:decode:7", "alias:7"});
  ASSERT_TRUE(StubCluster::WaitFor(
      [&] { return Connected().size() == 1 && client_->Summaries().size() == 1; }));
  TakeEvents();
  ASSERT_EQ(joined_.size(), 1u);
  double up = 0;
  for (const char* address : {"alias:7", "10.0.0.1:7", "[fd00::1]:7"}) {
    EXPECT_NE(Up(address), 0) << address;
    up += std::max(Up(address), 0.0);
  }
  EXPECT_EQ(up, 1);
  // Without a connection nobody knows that they are one.
  StopWorker("a");
  ASSERT_TRUE(StubCluster::WaitFor(
      [&] { return Connected().empty() && client_->Summaries().size() == 3; }));
}

TEST_F(WorkerClientTest, AnotherAddressTakesOverWhenTheFirstIsLost) {
  StartWorker("a", {"10.0.0.1:7"});
  names_->Set("decode", {"10.0.0.1"});
  Connect({"dns:decode:7"});
  ASSERT_TRUE(WaitForConnected({"10.0.0.1:7"}));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    network_["10.0.0.2:7"] = workers_["a"];
  }
  names_->Set("decode", {"10.0.0.1", "10.0.0.2"});
  names_->WaitUntilTold();
  ASSERT_TRUE(StubCluster::WaitFor([&] { return client_->Summaries().size() == 1; }));
  EXPECT_THAT(Connected(), ElementsAre("10.0.0.1:7"));
  names_->Set("decode", {"10.0.0.2"});
  names_->WaitUntilTold();
  // The router breaks the connection by the old address, which nobody names any more.
  TakeEvents();
  client_->Refuse({joined_.begin()->first, absl::FailedPreconditionError("test")});
  ASSERT_TRUE(WaitForConnected({"10.0.0.2:7"}));
  EXPECT_EQ(Up("10.0.0.1:7"), -1);
  EXPECT_EQ(Up("10.0.0.2:7"), 1);
  EXPECT_EQ(joined_.begin()->second, "a");
}

TEST_F(WorkerClientTest, TheSameNameInAnotherProcessIsAnotherWorker) {
  StartWorker("a", {"10.0.0.1:7"}, /*incarnation=*/1);
  StartWorker("a", {"10.0.0.2:7"}, /*incarnation=*/2);
  names_->Set("decode", {"10.0.0.1", "10.0.0.2"});
  Connect({"dns:decode:7"});
  ASSERT_TRUE(WaitForConnected({"10.0.0.1:7", "10.0.0.2:7"}));
}

}  // namespace
}  // namespace baton::server
