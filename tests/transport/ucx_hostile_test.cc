// What does not come from a well-behaved peer: damaged addresses, strangers on the listening port,
// and UCX messages that our sender would never send. And options that cannot work.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>

#include "base/check.h"
#include "tests/transport/test_peer.h"
#include "transport/ucx/ucx_engine.h"
#include "transport/ucx/ucx_host.h"
#include "transport/ucx/ucx_library.h"
#include "transport/ucx/ucx_transport.h"

namespace baton::transport {
namespace {

using enum KvEventKind;

UcxOptions TestOptions() {
  UcxOptions options;
  options.max_message_bytes = uint64_t{1} << 20;
  options.staging_bytes = uint64_t{4} << 20;
  return options;
}

std::unique_ptr<UcxTransport> NewEndpoint() {
  return CreateUcxTransport(TestOptions(), std::make_shared<MonotonicClock>()).value();
}

SocketAddress Locate(const std::string& address) {
  return ToSocketAddress(LoopbackIp(), DecodeUcxAddress(LoadedUcxVersion(), address).value().port);
}

void ExpectWorks(TestPeer* peer, Bell* bell) {
  TestPeer other(NewEndpoint(), bell);
  const TransferId transfer = other.transport().Prepare(peer->transport().address()).value();
  TestMemory memory(&other.transport(), 1000, 1);
  const size_t before = peer->Count(kReceived);
  ASSERT_TRUE(
      other.transport().Post(transfer, 1, TestHeader(1, memory.bytes()), memory.bytes()).ok());
  EXPECT_TRUE(PollUntil({peer, &other}, [&] { return peer->Count(kReceived) == before + 1; }));
}

TEST(UcxAddress, RoundTripsAndRefusesEveryDamage) {
  const UcxVersion version{1, 13};
  const UcxAddress address{.host_id = 5,
                           .incarnation = 6,
                           .port = 7,
                           .ips = {LoopbackIp(), ParseIp("fd00::12").value()}};
  const std::string bytes = EncodeUcxAddress(version, address);
  const UcxAddress back = DecodeUcxAddress(version, bytes).value();
  EXPECT_EQ(back.host_id, 5u);
  EXPECT_EQ(back.incarnation, 6u);
  EXPECT_EQ(back.port, 7u);
  EXPECT_EQ(back.ips, address.ips);
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] ^= 4;
    if (i == 7) continue;  // padding
    EXPECT_FALSE(DecodeUcxAddress(version, damaged).ok()) << i;
    EXPECT_FALSE(DecodeUcxAddress(version, bytes.substr(0, i)).ok()) << i;
  }
  const absl::Status other = DecodeUcxAddress({1, 17}, bytes).status();
  EXPECT_NE(other.message().find("1.13"), absl::string_view::npos) << other;
}

TEST(UcxAddress, PrefersASharedNetwork) {
  const auto ip = [](const char* text) { return ParseIp(text).value(); };
  const std::vector<IpInterface> local = {{ip("10.1.2.3"), 16}, {ip("192.168.7.1"), 25}};
  UcxAddress peer{.port = 1, .ips = {ip("172.17.0.2"), ip("192.168.7.100")}};
  EXPECT_EQ(ChooseIp(local, peer), ip("192.168.7.100"));
  peer.ips = {ip("172.17.0.2"), ip("192.168.7.200")};
  EXPECT_EQ(ChooseIp(local, peer), ip("172.17.0.2"));
  EXPECT_FALSE(ParseIp("10.1.2").ok());
}

TEST(UcxTransport, RefusesOptionsWithTheFix) {
  const auto status = [](const std::function<void(UcxOptions*)>& change) {
    UcxOptions options = TestOptions();
    change(&options);
    return CreateUcxTransport(options, std::make_shared<MonotonicClock>()).status();
  };
  EXPECT_EQ(status([](auto* o) { o->tls = ""; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status([](auto* o) { o->staging_bytes = 1; }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status([](auto* o) { o->max_peers = 0; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status([](auto* o) { o->listen_ip = "here"; }).code(),
            absl::StatusCode::kInvalidArgument);
  // An address of TEST-NET-1, which no host has.
  const absl::Status elsewhere = status([](auto* o) { o->listen_ip = "192.0.2.1"; });
  EXPECT_EQ(elsewhere.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(elsewhere.message().find("listen_ip"), absl::string_view::npos) << elsewhere;
  const absl::Status unknown = status([](auto* o) { o->tls = "carrier_pigeon"; });
  EXPECT_EQ(unknown.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(unknown.message().find("carrier_pigeon"), absl::string_view::npos) << unknown;
}

TEST(UcxTransport, LeavesSignalHandlersAlone) {
  const auto endpoint = NewEndpoint();
  for (const int signal : {SIGBUS, SIGFPE, SIGILL}) {
    struct sigaction action = {};
    ASSERT_EQ(sigaction(signal, nullptr, &action), 0);
    Dl_info info = {};
    const void* handler = reinterpret_cast<const void*>(action.sa_sigaction);
    if (handler == nullptr || dladdr(handler, &info) == 0) continue;
    EXPECT_EQ(std::string(info.dli_fname).find("libuc"), std::string::npos) << info.dli_fname;
  }
}

TEST(UcxTransport, SurvivesStrangersOnItsPort) {
  Bell bell;
  TestPeer peer(NewEndpoint(), &bell);
  const SocketAddress where = Locate(peer.transport().address());
  Rng rng(1);
  std::vector<int> sockets;
  for (int i = 0; i < 20; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    ASSERT_EQ(connect(fd, where.get(), where.length), 0);
    // Some say nothing; some leave at once; the others say something, from a byte on.
    if (i % 4 != 0) {
      std::string noise(1 + rng.Below(5000), '\0');
      for (char& c : noise) c = static_cast<char>(rng.Next());
      EXPECT_GT(send(fd, noise.data(), noise.size(), MSG_NOSIGNAL), 0);
    }
    if (i % 3 == 0) {
      close(fd);
    } else {
      sockets.push_back(fd);
    }
    if (i % 5 == 0) ExpectWorks(&peer, &bell);
  }
  ExpectWorks(&peer, &bell);
  peer.Destroy();  // with strangers still connected
  for (const int fd : sockets) close(fd);
}

// A UCX client that is not ours.
class RawClient {
 public:
  explicit RawClient(const std::string& address)
      : context_(CreateUcxContext(TestOptions()).value()),
        worker_(CreateUcxWorker(context_.get()).value()) {
    const SocketAddress to = Locate(address);
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                        UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
    params.sockaddr = {to.get(), to.length};
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {[](void*, ucp_ep_h, ucs_status_t) {}, nullptr};
    BATON_CHECK_EQ(ucp_ep_create(worker_.get(), &params, &endpoint_), UCS_OK);
  }
  ~RawClient() {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    Finish(ucp_ep_close_nbx(endpoint_, &param));
  }

  void Send(unsigned id, std::span<const std::byte> header, size_t bytes, uint32_t flags) {
    const std::vector<std::byte> payload(bytes);
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = flags;
    Finish(ucp_am_send_nbx(endpoint_, id, header.data(), header.size(), payload.data(),
                           payload.size(), &param));
  }

 private:
  void Finish(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    MonotonicClock clock;
    const Tick end = clock.Now() + Duration::Seconds(20);
    while (ucp_request_check_status(request) == UCS_INPROGRESS && clock.Now() < end) {
      ucp_worker_progress(worker_.get());
    }
    EXPECT_NE(ucp_request_check_status(request), UCS_INPROGRESS);
    ucp_request_free(request);
  }

  UcxContext context_;
  UcxWorker worker_;
  ucp_ep_h endpoint_ = nullptr;
};

TEST(UcxTransport, DropsAndCountsMalformedMessages) {
  Bell bell;
  TestPeer peer(NewEndpoint(), &bell);
  auto& ucx = static_cast<UcxTransport&>(peer.transport());
  uint64_t malformed = 0;
  {
    RawClient client(ucx.address());
    // The path that a connection takes at first is UCX's to choose: a rendezvous settles it.
    const auto send = [&](unsigned id, std::span<const std::byte> header, size_t bytes,
                          uint32_t flags, bool counts) {
      client.Send(id, header, bytes, flags);
      malformed += counts;
    };
    KvMessageHeader header = TestHeader(1, {});
    header.payload_bytes = 100;
    const auto raw = std::as_bytes(std::span(&header, 1));
    const uint32_t rndv = UCP_AM_SEND_FLAG_RNDV;
    send(kUcxDataId, raw, 101, rndv, true);            // longer than it says
    send(kUcxDataId, raw, 99, rndv, true);             // shorter
    send(kUcxDataId, raw.first(55), 100, rndv, true);  // header cut
    send(kUcxDataId, {}, 100, rndv, true);             // no header
    send(kUcxDataId, raw, 100, UCP_AM_SEND_FLAG_EAGER, true);
    send(kUcxNotifyId, raw, 100, rndv, true);            // wrong header
    send(65535, raw, 100, rndv, true);                   // the highest id
    send(999, raw, 100, UCP_AM_SEND_FLAG_EAGER, false);  // unknown ids: UCX drops them
    send(40'000, raw, 100, UCP_AM_SEND_FLAG_EAGER, false);
    const uint32_t too_long = 5000;
    send(kUcxNotifyId, std::as_bytes(std::span(&too_long, 1)), 5000, rndv, true);
    header.payload_bytes = uint64_t{2} << 20;
    send(kUcxDataId, raw, size_t{2} << 20, rndv, true);  // larger than allowed
    EXPECT_TRUE(PollUntil({&peer}, [&] { return ucx.counters().malformed_messages == malformed; }))
        << ucx.counters().malformed_messages << " of " << malformed;
    EXPECT_TRUE(peer.seen.empty());
  }
  ExpectWorks(&peer, &bell);
  EXPECT_EQ(ucx.staging_in_use_bytes() > 0, true);
  peer.Poll();
  EXPECT_EQ(ucx.staging_in_use_bytes(), 0u);
}

// A UCX worker that others reach by its address, as ranks of a group do.
class RawWorker {
 public:
  explicit RawWorker(const std::string& tls) {
    UcxOptions options = TestOptions();
    options.tls = tls;
    context_ = CreateUcxContext(options).value();
    worker_ = CreateUcxWorker(context_.get()).value();
  }
  std::string Address() {
    ucp_address_t* address = nullptr;
    size_t bytes = 0;
    BATON_CHECK_EQ(ucp_worker_get_address(worker_.get(), &address, &bytes), UCS_OK);
    std::string out(reinterpret_cast<const char*>(address), bytes);
    ucp_worker_release_address(worker_.get(), address);
    return out;
  }
  ucs_status_t Connect(const std::string& address) {
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(address.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {
        [](void* lost, ucp_ep_h, ucs_status_t) { *static_cast<bool*>(lost) = true; }, &lost_};
    return ucp_ep_create(worker_.get(), &params, &endpoint_);
  }
  void Progress() {
    while (ucp_worker_progress(worker_.get()) != 0) {
    }
  }
  bool lost() const { return lost_; }

 private:
  UcxContext context_;
  UcxWorker worker_;
  ucp_ep_h endpoint_ = nullptr;
  bool lost_ = false;
};

// UCX 1.13 ended the process here by an assertion of its own while its connects blocked.
TEST(UcxLibrary, AConnectionToAPeerThatHasJustEndedIsAnError) {
  for (int i = 0; i < 20; ++i) {
    RawWorker worker("tcp");
    auto peer = std::make_unique<RawWorker>("tcp");
    const std::string address = peer->Address();
    ASSERT_EQ(peer->Connect(worker.Address()), UCS_OK);
    // Longer each time, so that the peer ends at different points of the agreement.
    for (int round = 0; round < i; ++round) {
      poll(nullptr, 0, 1);
      worker.Progress();
    }
    peer.reset();
    bool failed = worker.Connect(address) != UCS_OK;
    MonotonicClock clock;
    const Tick end = clock.Now() + Duration::Seconds(20);
    while (!failed && clock.Now() < end) {
      worker.Progress();
      failed = worker.lost();
    }
    EXPECT_TRUE(failed) << i;
  }
}

// The next worker of a process is another one, whatever the system's name of the old one's shared
// memory means by then. UCX's posix transport names it by a file descriptor, which the next worker
// gets again: messages meant for a group that has ended arrived in the next one, and UCX ended the
// process by an assertion.
TEST(UcxLibrary, TheAddressOfAnEndedWorkerDoesNotReachTheNextOne) {
  for (int i = 0; i < 3; ++i) {
    RawWorker worker(UcxOptions().tls);
    auto peer = std::make_unique<RawWorker>(UcxOptions().tls);
    const std::string address = peer->Address();
    peer.reset();
    RawWorker next(UcxOptions().tls);
    bool failed = worker.Connect(address) != UCS_OK;
    MonotonicClock clock;
    const Tick end = clock.Now() + Duration::Seconds(20);
    while (!failed && clock.Now() < end) {
      worker.Progress();
      next.Progress();
      failed = worker.lost();
    }
    EXPECT_TRUE(failed) << i;
  }
}

}  // namespace
}  // namespace baton::transport
