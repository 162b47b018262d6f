// Workers that a router finds by name: they come and go while requests run, and no request fails.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <deque>
#include <optional>

#include "base/thread.h"
#include "tests/e2e/cluster.h"
#include "tests/server/dns_server.h"

namespace baton::e2e {
namespace {

constexpr int kClients = 6;

bool TakeAll(const std::string&, const std::vector<TokenId>&) { return true; }

server::ClientRequest Request(int repeats) {
  server::ClientRequest request;
  for (int i = 0; i < repeats; ++i) request.text += "The files are read in the order given. ";
  request.max_tokens = 24;
  request.temperature = 0.0f;
  request.ignore_eos = true;
  return request;
}

// Workers of one role: each at an address of its own, all at the same port.
class Workers {
 public:
  Workers(const ScratchDirectory& scratch, server::DnsServer& dns, std::string role)
      : scratch_(scratch), dns_(dns), role_(std::move(role)) {}

  // Starts one more; the name has it once it listens.
  BatonProcess& Add() {
    const std::string ip = "127.0.0." + std::to_string(2 + processes_.size());
    processes_.emplace_back(
        scratch_, role_ + "-" + std::to_string(processes_.size()),
        std::vector<std::string>{role_, std::string("--model=") + kModel,
                                 "--" + role_ + ".address=" + ip + ":" + std::to_string(port_),
                                 "--http-port=127.0.0.1:0", "--handoff.ucx.listen_ip=127.0.0.1",
                                 "--" + role_ + ".threads=1", "--" + role_ + ".memory_mb=64"});
    BatonProcess& process = processes_.back();
    EXPECT_TRUE(process.WaitForPorts()) << process.Log();
    port_ = process.grpc_port();
    ips_.push_back(ip);
    dns_.Set(name(), ips_);
    return process;
  }
  // The name forgets the first of those that it has.
  void ForgetFirst() {
    ips_.erase(ips_.begin());
    dns_.Set(name(), ips_);
  }

  BatonProcess& operator[](size_t i) { return processes_[i]; }
  std::string name() const { return role_ + ".test"; }
  std::string entry() const { return "dns:" + name() + ":" + std::to_string(port_); }

 private:
  const ScratchDirectory& scratch_;
  server::DnsServer& dns_;
  const std::string role_;
  int port_ = 0;
  std::deque<BatonProcess> processes_;
  std::vector<std::string> ips_;
};

double Prefilled(const BatonProcess& prefill) {
  return Metric(prefill, "baton_prefill_tokens_total");
}
double Received(const BatonProcess& decode) {
  return Metric(decode, "baton_handoff_received_messages_total");
}

TEST(Discovery, WorkersJoinAndLeaveWhileRequestsRun) {
  const ScratchDirectory scratch;
  server::DnsServer dns;
  Workers prefill(scratch, dns, "prefill");
  Workers decode(scratch, dns, "decode");
  for (Workers* workers : {&prefill, &decode}) {
    workers->Add();
    workers->Add();
  }
  BatonProcess router(
      scratch, "router",
      {"router", std::string("--model=") + kModel, "--port=127.0.0.1:0", "--http-port=127.0.0.1:0",
       "--router.prefill_workers=" + prefill.entry(), "--router.decode_workers=" + decode.entry(),
       "--router.dns_server=" + dns.address(), "--router.dns_interval_ms=100"});
  ASSERT_TRUE(router.WaitForPorts()) << router.Log();
  const auto up = [&] {
    const std::string page = HttpGet(router.http_port(), "/metrics");
    int count = 0;
    for (size_t at = 0; (at = page.find("\nbaton_worker_up{", at)) != std::string::npos; ++at) {
      count += page.compare(page.find("} ", at), 3, "} 1") == 0 ? 1 : 0;
    }
    return count;
  };
  ASSERT_TRUE(Eventually(30, [&] { return up() == 4; })) << router.Log();

  std::vector<std::vector<TokenId>> expected;
  for (int repeats = 1; repeats <= kClients; ++repeats) {
    const auto alone =
        server::ConnectCompletionClient(router.grpc_address())->Generate(Request(repeats), TakeAll);
    ASSERT_TRUE(alone.ok()) << alone.status();
    expected.push_back(alone->token_ids);
  }

  std::atomic<bool> stop{false};
  std::atomic<int> done{0};
  std::deque<Thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back("client", [&, i] {
      const auto client = server::ConnectCompletionClient(router.grpc_address());
      while (!stop) {
        const auto result = client->Generate(Request(i + 1), TakeAll);
        EXPECT_TRUE(result.ok()) << result.status();
        if (!result.ok()) return;
        EXPECT_EQ(result->token_ids, expected[static_cast<size_t>(i)]);
        ++done;
      }
    });
  }
  EXPECT_TRUE(Eventually(60, [&] { return Received(decode[0]) > 0 && Received(decode[1]) > 0; }));
  EXPECT_TRUE(
      Eventually(60, [&] { return Prefilled(prefill[0]) > 0 && Prefilled(prefill[1]) > 0; }));

  // A third decode worker joins, and gets its share.
  decode.Add();
  EXPECT_TRUE(Eventually(60, [&] { return Received(decode[2]) > 0; })) << router.Log();

  // The first one leaves: it finishes what it has, then exits well.
  decode[0].Signal(SIGTERM);
  EXPECT_EQ(decode[0].Wait(), 0) << decode[0].Log();
  decode.ForgetFirst();
  prefill[0].Signal(SIGTERM);
  EXPECT_EQ(prefill[0].Wait(), 0) << prefill[0].Log();
  prefill.ForgetFirst();
  const int before = done;
  EXPECT_TRUE(Eventually(60, [&] { return done >= before + 2 * kClients; }));
  // Whoever has left the name and the cluster is shown no more.
  EXPECT_TRUE(Eventually(30, [&] {
    return HttpGet(router.http_port(), "/metrics").find("127.0.0.2:") == std::string::npos;
  })) << router.Log();
  EXPECT_EQ(up(), 3);
  stop = true;
}

}  // namespace
}  // namespace baton::e2e
