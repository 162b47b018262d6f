// Measures UCX between two processes of this host: bandwidth of a stream of posts and the time from
// Post to the answer's arrival, per message size, beside memcpy of the same bytes.
//
//   transport_bench [TLS]      (default: UcxOptions().tls)
//
// Not a test: prints a table. The other process is this program again (TLS, address and "child").
//
//   transport_bench collectives [TLS]
//
// measures the collectives instead, between threads and between processes (collectives_child): the
// call, ranks, bytes (of a message between two ranks), microseconds between threads and between
// processes, and the ratio.

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "tests/transport/child_process.h"
#include "tests/transport/collectives_bench.h"
#include "tests/transport/group_fabrics.h"
#include "tests/transport/group_processes.h"
#include "tests/transport/hex.h"
#include "tests/transport/test_peer.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {
namespace {

constexpr size_t kMaxBytes = size_t{4} << 20;
constexpr size_t kWindow = 16;

std::unique_ptr<UcxTransport> NewEndpoint(const std::string& tls) {
  UcxOptions options;
  options.tls = tls;
  options.listen_ip = "127.0.0.1";
  return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).value();
}

// Polls once; waits for the wakeup where nothing came.
template <typename OnEvent>
void Pump(KvTransport* transport, Bell* bell, OnEvent on_event) {
  std::vector<KvEvent> events;
  transport->Poll(&events, 32);
  for (const KvEvent& event : events) {
    BATON_CHECK(event.kind != KvEventKind::kPeerLost);
    on_event(event);
  }
  if (events.empty()) bell->Wait(std::chrono::milliseconds(100));
}

// Answers every message whose request number is odd.
int Child(const std::string& tls, const std::string& parent) {
  auto transport = NewEndpoint(tls);
  Bell bell;
  transport->SetWakeup([&] { bell.Ring(); });
  std::printf("%s\n", ToHex(transport->address()).c_str());
  std::fflush(stdout);
  std::vector<std::byte> memory(64);
  BATON_CHECK(transport->Register(memory).ok());
  const TransferId back = transport->Prepare(FromHex(parent)).value();
  bool done = false;
  while (!done) {
    Pump(transport.get(), &bell, [&](const KvEvent& event) {
      if (event.kind == KvEventKind::kNotified) done = true;
      if (event.kind != KvEventKind::kReceived || event.header.request % 2 == 0) return;
      KvMessageHeader header;
      header.payload_bytes = memory.size();
      BATON_CHECK(transport->Post(back, 0, header, memory).ok());
    });
  }
  return 0;
}

double Seconds(Clock* clock, const std::function<void()>& work) {
  const Tick start = clock->Now();
  work();
  return (clock->Now() - start).seconds();
}

class Bench {
 public:
  Bench(const std::string& program, const std::string& tls)
      : transport_(NewEndpoint(tls)),
        memory_(kWindow * kMaxBytes, std::byte{1}),
        child_(program, {tls, ToHex(transport_->address()), "child"}) {
    transport_->SetWakeup([this] { bell_.Ring(); });
    BATON_CHECK(transport_->Register(memory_).ok());
    transfer_ = transport_->Prepare(FromHex(child_.ReadLine())).value();
  }

  void Row(size_t bytes) {
    const size_t count = std::max<size_t>(64, (size_t{512} << 20) / bytes);
    Stream(bytes, kWindow);  // connects, and touches all memory once
    const double stream_s = Seconds(&clock_, [&] { Stream(bytes, count); });
    constexpr int kRounds = 200;
    const double round_s = Seconds(&clock_, [&] {
      for (int i = 0; i < kRounds; ++i) RoundTrip(bytes);
    });
    std::vector<std::byte> target(memory_.size());
    std::memcpy(target.data(), memory_.data(), target.size());
    const double copy_s = Seconds(&clock_, [&] {
      for (size_t i = 0; i < count; ++i) {
        const size_t at = i % kWindow * bytes;
        std::memcpy(target.data() + at, memory_.data() + at, bytes);
      }
    });
    const double gigabytes = static_cast<double>(count * bytes) * 1e-9;
    std::printf("%8zu KiB  %7.2f GB/s  memcpy %7.2f GB/s  ratio %.2f  round trip %8.1f us\n",
                bytes / 1024, gigabytes / stream_s, gigabytes / copy_s, copy_s / stream_s,
                round_s / kRounds * 1e6);
  }

  void Finish() {
    const std::byte end[1] = {};
    BATON_CHECK(transport_->Notify(transfer_, end).ok());
    BATON_CHECK_EQ(child_.Finish(), 0);
  }

 private:
  void Stream(size_t bytes, size_t count) {
    size_t posted = 0, sent = 0;
    while (sent < count) {
      for (; posted < count && posted - sent < kWindow; ++posted) Post(0, posted, bytes);
      Pump(transport_.get(), &bell_,
           [&](const KvEvent& event) { sent += event.kind == KvEventKind::kSent; });
    }
  }

  void RoundTrip(size_t bytes) {
    Post(1, 0, bytes);
    int events = 0;
    while (events < 2) Pump(transport_.get(), &bell_, [&](const KvEvent&) { ++events; });
  }

  void Post(uint64_t request, size_t slot, size_t bytes) {
    const auto payload = std::span<const std::byte>(memory_).subspan(slot % kWindow * bytes, bytes);
    KvMessageHeader header;
    header.request = request;
    header.payload_bytes = bytes;
    BATON_CHECK(transport_->Post(transfer_, slot, header, payload).ok());
  }

  MonotonicClock clock_;
  Bell bell_;
  std::unique_ptr<UcxTransport> transport_;
  std::vector<std::byte> memory_;
  ChildProcess child_;
  TransferId transfer_;
};

void CollectivesRows(int ranks, const std::string& tls) {
  std::vector<CollectiveFigure> threads;
  InprocGroupFabric fabric;
  {
    TestGroupOf group(&fabric, ranks);
    OnRanks(ranks, [&](int rank) {
      const std::vector<CollectiveFigure> figures = BenchCollectives(&group.at(rank));
      if (rank == 0) threads = figures;
    });
  }
  const std::string addresses = FreeAddresses(ranks);
  std::vector<std::unique_ptr<ChildProcess>> children;
  for (int rank = 0; rank < ranks; ++rank) {
    children.push_back(StartRank("bench", tls, ranks, rank, addresses));
  }
  children[0]->ReadLine();  // "joined 1"
  for (const CollectiveFigure& figure : threads) {
    const double us = std::stod(children[0]->ReadLine());
    std::printf("%-12s %d ranks %8zu B  threads %9.1f us  processes %9.1f us  ratio %.2f\n",
                figure.call, ranks, figure.bytes, figure.us, us, us / figure.us);
    std::fflush(stdout);
  }
  for (auto& child : children) BATON_CHECK_EQ(child->Finish(), 0);
}

}  // namespace
}  // namespace baton::transport

int main(int argc, char** argv) {
  using namespace baton::transport;
  if (argc > 1 && std::string(argv[1]) == "collectives") {
    for (const int ranks : {2, 4, 8}) CollectivesRows(ranks, argc > 2 ? argv[2] : UcxOptions().tls);
    return 0;
  }
  const std::string tls = argc > 1 ? argv[1] : UcxOptions().tls;
  if (argc > 3) return Child(tls, argv[2]);
  Bench bench(argv[0], tls);
  std::printf("tls %s, %zu posts in flight\n", tls.c_str(), kWindow);
  for (size_t bytes = 64 * 1024; bytes <= kMaxBytes; bytes *= 2) bench.Row(bytes);
  bench.Finish();
  return 0;
}
