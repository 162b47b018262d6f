#ifndef BATON_BASE_HOST_PORT_H_
#define BATON_BASE_HOST_PORT_H_

// "127.0.0.1:80", "name:80", "[::1]:80", ":80" taken apart.

#include <optional>
#include <string>
#include <string_view>

namespace baton {

struct HostPort {
  std::string host;  // without brackets; may be empty
  std::string port;  // may be empty
};

// At the last colon; nothing without one. Whether host and port mean something is for the caller.
inline std::optional<HostPort> SplitHostPort(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  std::string_view host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return HostPort{std::string(host), std::string(address.substr(colon + 1))};
}

}  // namespace baton

#endif  // BATON_BASE_HOST_PORT_H_
