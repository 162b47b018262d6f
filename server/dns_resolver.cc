#include "server/dns_resolver.h"

#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace baton::server {
namespace {

// Of one query to one server; c-ares doubles it with each round.
constexpr int kQueryTimeoutMs = 1'000;
constexpr int kRounds = 2;
// Of all: servers and search domains multiply.
constexpr int kTotalMs = 5'000;
constexpr int kPollMs = 250;

// What the callback of a query is given. It is called once, at the latest when the channel goes.
struct Answer {
  std::optional<int> status;  // of c-ares; nothing: not yet
  std::vector<std::string> addresses;
};

std::string TextOf(const sockaddr& address) {
  char text[INET6_ADDRSTRLEN] = {};
  const bool v4 = address.sa_family == AF_INET;
  const void* bytes =
      v4 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(address).sin_addr)
         : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
  return inet_ntop(address.sa_family, bytes, text, sizeof text) == nullptr ? std::string() : text;
}

void OnAnswer(void* argument, int status, int /*timeouts*/, ares_addrinfo* info) {
  auto& answer = *static_cast<Answer*>(argument);
  answer.status = status;
  if (info == nullptr) return;
  for (const ares_addrinfo_node* node = info->nodes; node != nullptr; node = node->ai_next) {
    if (node->ai_family != AF_INET && node->ai_family != AF_INET6) continue;
    answer.addresses.push_back(TextOf(*node->ai_addr));
  }
  ares_freeaddrinfo(info);
  std::sort(answer.addresses.begin(), answer.addresses.end());
  answer.addresses.erase(std::unique(answer.addresses.begin(), answer.addresses.end()),
                         answer.addresses.end());
}

// A set of queries and their sockets. c-ares needs ares_library_init on Windows only.
class Channel {
 public:
  static absl::StatusOr<std::unique_ptr<Channel>> Create(const std::string& server) {
    ares_options options = {};
    options.timeout = kQueryTimeoutMs;
    options.tries = kRounds;
    char lookups[] = "fb";  // files, then name servers
    options.lookups = lookups;
    auto channel = std::make_unique<Channel>();
    int status = ares_init_options(&channel->channel_, &options,
                                   ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS);
    if (status == ARES_SUCCESS && !server.empty()) {
      status = ares_set_servers_ports_csv(channel->channel_, server.c_str());
    }
    if (status == ARES_SUCCESS) return channel;
    return absl::UnavailableError(
        absl::StrCat("cannot resolve names (server \"", server, "\"): ", ares_strerror(status)));
  }
  Channel() = default;
  Channel(const Channel&) = delete;
  ~Channel() {
    if (channel_ != nullptr) ares_destroy(channel_);
  }

  // Both families. `answer` must outlive the channel.
  void Ask(const std::string& host, Answer* answer) {
    ares_addrinfo_hints hints = {};
    hints.ai_family = AF_UNSPEC;
    hints.ai_flags = ARES_AI_NOSORT;  // would open connections
    ares_getaddrinfo(channel_, host.c_str(), nullptr, &hints, OnAnswer, answer);
  }

  // Waits for news a while, or until `wake` (a file descriptor) can be read; true: it can.
  bool Work(int wake) {
    std::array<ares_socket_t, ARES_GETSOCK_MAXNUM> sockets = {};
    const auto use = static_cast<uint32_t>(
        ares_getsock(channel_, sockets.data(), static_cast<int>(sockets.size())));
    std::array<pollfd, ARES_GETSOCK_MAXNUM + 1> polled = {};
    nfds_t count = 0;
    for (size_t i = 0; i < sockets.size(); ++i) {
      short events = 0;
      if (ARES_GETSOCK_READABLE(use, i)) events |= POLLIN;
      if (ARES_GETSOCK_WRITABLE(use, i)) events |= POLLOUT;
      if (events != 0) polled[count++] = {sockets[i], events, 0};
    }
    polled[count] = {wake, POLLIN, 0};
    timeval bound = {0, kPollMs * 1'000};
    timeval buffer = {};
    const timeval* wait = ares_timeout(channel_, &bound, &buffer);
    ::poll(polled.data(), count + 1,
           static_cast<int>(wait->tv_sec * 1'000 + wait->tv_usec / 1'000 + 1));
    for (nfds_t i = 0; i < count; ++i) {
      const short got = polled[i].revents;
      const bool failed = (got & (POLLERR | POLLHUP)) != 0;
      const bool in = failed || (got & POLLIN) != 0;
      const bool out = (got & POLLOUT) != 0;
      ares_process_fd(channel_, in ? polled[i].fd : ARES_SOCKET_BAD,
                      out ? polled[i].fd : ARES_SOCKET_BAD);
    }
    ares_process_fd(channel_, ARES_SOCKET_BAD, ARES_SOCKET_BAD);  // timeouts
    return polled[count].revents != 0;
  }

 private:
  ares_channel channel_ = nullptr;
};

class DnsResolver final : public NameResolver {
 public:
  explicit DnsResolver(std::string server)
      : server_(std::move(server)), cancelled_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    BATON_CHECK(cancelled_ >= 0);
  }
  ~DnsResolver() override { ::close(cancelled_); }

  void Cancel() override {
    const uint64_t one = 1;
    BATON_CHECK(::write(cancelled_, &one, sizeof one) == sizeof one);  // never read: it stays
  }

  absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host) override {
    Answer answer;
    BATON_ASSIGN_OR_RETURN(const std::unique_ptr<Channel> channel, Channel::Create(server_));
    channel->Ask(host, &answer);
    const Tick deadline = clock_.Now() + Duration::Millis(kTotalMs);
    while (!answer.status.has_value() && clock_.Now() < deadline) {
      if (channel->Work(cancelled_)) return absl::CancelledError("the resolver was cancelled");
    }
    const int status = answer.status.value_or(ARES_ETIMEOUT);
    switch (status) {
      case ARES_SUCCESS:
        return std::move(answer.addresses);
      case ARES_ENODATA:
      case ARES_ENOTFOUND:
        return std::vector<std::string>();
      default:
        return absl::UnavailableError(absl::StrCat("no answer for ", host, ": ",
                                                   ares_strerror(status),
                                                   "; is the name server reachable?"));
    }
  }

 private:
  const std::string server_;
  const int cancelled_;  // an eventfd
  MonotonicClock clock_;
};

}  // namespace

std::unique_ptr<NameResolver> MakeDnsResolver(const std::string& server) {
  return std::make_unique<DnsResolver>(server);
}

}  // namespace baton::server
