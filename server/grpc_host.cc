#include "server/grpc_host.h"

#include <grpc/support/time.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/host_port.h"
#include "base/status_macros.h"

namespace baton::server {
namespace {

constexpr int kUnlimited = 0;
// Within a process nobody falls silent: its threads may be slow.
constexpr Duration kLoopbackTimeout = Duration::Seconds(50);

void SetServerArguments(const GrpcHostOptions& options, grpc::ServerBuilder* builder) {
  // Clients may ping idle connections; gRPC's own default takes that for an attack.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              static_cast<int>(options.min_ping_interval.millis()));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Our own pings find clients whose host vanished, so that their requests are cancelled.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, kUnlimited);
  // Two servers on one port would share its clients by chance.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->SetMaxReceiveMessageSize(options.max_message_bytes);
  builder->SetMaxSendMessageSize(options.max_message_bytes);
}

std::shared_ptr<grpc::Channel> PeerChannel(const std::string& address, Duration timeout) {
  const Duration ask_after = Duration::Nanos(timeout.nanos() * 2 / 5);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(ask_after.millis()));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>((timeout - ask_after).millis()));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, kUnlimited);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  // An HTTP proxy of the environment is for the outside world.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

class GrpcHostImpl final : public GrpcHost {
 public:
  explicit GrpcHostImpl(std::unique_ptr<grpc::Server> server, int port)
      : server_(std::move(server)), port_(port) {}
  ~GrpcHostImpl() override { Shutdown(Duration()); }

  int port() const override { return port_; }

  void SetServing(const std::string& service, bool serving) override {
    server_->GetHealthCheckService()->SetServingStatus(service, serving);
  }

  std::shared_ptr<grpc::Channel> LoopbackChannel() override {
    return PeerChannel("127.0.0.1:" + std::to_string(port_), kLoopbackTimeout);
  }

  void Shutdown(Duration grace) override {
    if (std::exchange(shut_down_, true)) return;
    server_->GetHealthCheckService()->SetServingStatus(false);
    server_->Shutdown(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                   gpr_time_from_nanos(grace.nanos(), GPR_TIMESPAN)));
    server_->Wait();
  }

 private:
  const std::unique_ptr<grpc::Server> server_;
  const int port_;
  bool shut_down_ = false;
};

// Whether `address` can be listened on, in the system's words: gRPC only says that it cannot, and
// writes lines of its own about it. OK when the system has no objection.
absl::Status ProbeAddress(const std::string& address) {
  const auto fail = [&](const std::string& why, const char* fix) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why, "; ", fix));
  };
  const std::optional<HostPort> parts = SplitHostPort(address);
  if (!parts.has_value()) return fail("no port in it", "give host:port");
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(parts->host.c_str(), parts->port.c_str(), &hints, &found);
  if (code != 0) return fail(gai_strerror(code), "is the host's name right?");
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  int error = 0;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    const int fd = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const bool bound = bind(fd, each->ai_addr, each->ai_addrlen) == 0;
    if (!bound) error = errno;
    close(fd);
    if (bound) return absl::OkStatus();
  }
  return fail(std::strerror(error), error == EADDRNOTAVAIL
                                        ? "give an address of this machine, or 0.0.0.0 for all"
                                        : "choose another port, or port 0 for any");
}

// gRPC 1.51 shares one callback queue in a process and shuts it down with the last server or
// channel that uses it; that shutdown races with the queue's own pollers and now and then fails an
// assertion (ref_counted.h, "prior > 0"). A server without a port that is never shut down keeps the
// queue alive as long as the process.
void KeepCallbackQueue() {
  static grpc::CallbackGenericService service;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&service);
  static grpc::Server* const keeper = builder.BuildAndStart().release();
  BATON_CHECK(keeper != nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcHost>> GrpcHost::Start(
    const GrpcHostOptions& options, const std::vector<grpc::Service*>& services) {
  // gRPC keeps these two switches per process.
  static std::once_flag plugins;
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    KeepCallbackQueue();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
  BATON_RETURN_IF_ERROR(ProbeAddress(options.address));
  grpc::ServerBuilder builder;
  SetServerArguments(options, &builder);
  int port = 0;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address,
                                               ": the port is taken, or the address is not one of "
                                               "this machine; choose another, or port 0 for any"));
  }
  return std::make_unique<GrpcHostImpl>(std::move(server), port);
}

wire::ChannelFactory PeerChannels(Duration timeout) {
  return [timeout](const std::string& address) { return PeerChannel(address, timeout); };
}

std::shared_ptr<grpc::Channel> MakeClientChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, kUnlimited);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace baton::server
