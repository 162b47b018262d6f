#include "tests/server/dns_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"

namespace baton::server {
namespace {

// RFC 1035: 12 bytes, then the question: labels, type, class.
constexpr size_t kHeaderBytes = 12;
constexpr size_t kMaxUdpBytes = 512;
constexpr int kTypeA = 1;

std::string Word(int value) {
  return {static_cast<char>(value >> 8), static_cast<char>(value & 0xFF)};
}

// The name at the start of the question, and where it ends.
std::string NameOf(const std::string& query, size_t* end) {
  std::string name;
  size_t at = kHeaderBytes;
  while (at < query.size() && query[at] != 0) {
    const auto length = static_cast<size_t>(static_cast<unsigned char>(query[at]));
    name += (name.empty() ? "" : ".") + query.substr(at + 1, length);
    at += 1 + length;
  }
  *end = at + 1;
  return name;
}

}  // namespace

DnsServer::DnsServer() {
  socket_ = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  BATON_CHECK(socket_ >= 0);
  BATON_CHECK(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size) == 0);
  BATON_CHECK(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  thread_.emplace("dns", [this] { Run(); });
}

DnsServer::~DnsServer() {
  stop_ = true;
  thread_.reset();
  ::close(socket_);
}

std::string DnsServer::address() const { return "127.0.0.1:" + std::to_string(port_); }

void DnsServer::Set(const std::string& name, const std::vector<std::string>& addresses) {
  std::lock_guard<std::mutex> lock(mutex_);
  names_[name] = addresses;
}

void DnsServer::SetSilent(bool silent) {
  std::lock_guard<std::mutex> lock(mutex_);
  silent_ = silent;
}

void DnsServer::Run() {
  while (!stop_) {
    pollfd polled = {socket_, POLLIN, 0};
    if (::poll(&polled, 1, 20) <= 0) continue;
    char buffer[kMaxUdpBytes];
    sockaddr_in client = {};
    socklen_t size = sizeof client;
    const ssize_t got =
        ::recvfrom(socket_, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&client), &size);
    if (got <= static_cast<ssize_t>(kHeaderBytes)) continue;
    ++queries_;
    const std::string reply = Reply({buffer, static_cast<size_t>(got)});
    if (reply.empty()) continue;
    ::sendto(socket_, reply.data(), reply.size(), 0, reinterpret_cast<sockaddr*>(&client), size);
  }
}

std::string DnsServer::Reply(const std::string& query) {
  size_t end = 0;
  const std::string name = NameOf(query, &end);
  if (end + 4 > query.size()) return std::string();
  const int type = static_cast<unsigned char>(query[end + 1]);
  std::lock_guard<std::mutex> lock(mutex_);
  if (silent_) return std::string();
  const auto known = names_.find(name);
  const bool exists = known != names_.end();
  std::vector<std::string> addresses;
  if (exists && type == kTypeA) addresses = known->second;
  // A reply, recursion wanted and offered; code 3: no such name.
  std::string reply = query.substr(0, 2) + Word(0x8180 | (exists ? 0 : 3)) + Word(1) +
                      Word(static_cast<int>(addresses.size())) + Word(0) + Word(0) +
                      query.substr(kHeaderBytes, end + 4 - kHeaderBytes);
  for (const std::string& address : addresses) {
    in_addr bytes = {};
    BATON_CHECK(inet_pton(AF_INET, address.c_str(), &bytes) == 1);
    // The question's name, type A, class IN, a second to live.
    reply += Word(0xC000 | kHeaderBytes) + Word(kTypeA) + Word(1) + Word(0) + Word(1) + Word(4) +
             std::string(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  }
  BATON_CHECK_LE(reply.size(), kMaxUdpBytes);
  return reply;
}

}  // namespace baton::server
