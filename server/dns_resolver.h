#ifndef BATON_SERVER_DNS_RESOLVER_H_
#define BATON_SERVER_DNS_RESOLVER_H_

// Which addresses stand behind a name.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::server {

// One thread calls Resolve, any may call Cancel.
class NameResolver {
 public:
  virtual ~NameResolver() = default;

  // The IP addresses of `host` (IPv6 without brackets), sorted, each once. Empty: there is no such
  // name, or it has no address. May block, for about 5 seconds at most. UNAVAILABLE when nobody
  // answers, or with an error; CANCELLED after Cancel.
  virtual absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host) = 0;

  // Ends a Resolve under way, and every later one, at once.
  virtual void Cancel() = 0;
};

// As the machine resolves names: /etc/hosts, then the name servers and search domains of
// /etc/resolv.conf, read anew each time. `server` ("10.0.0.10:53", "[fd00::a]:53"; empty: none) is
// asked in place of those of resolv.conf.
std::unique_ptr<NameResolver> MakeDnsResolver(const std::string& server);

}  // namespace baton::server

#endif  // BATON_SERVER_DNS_RESOLVER_H_
