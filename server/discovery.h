#ifndef BATON_SERVER_DISCOVERY_H_
#define BATON_SERVER_DISCOVERY_H_

// Asks again and again, on a thread of its own, which addresses stand behind names such as a
// headless Kubernetes Service, and tells the answers. A failure to resolve is no answer: it is
// logged, and nothing is told.

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/host_port.h"
#include "base/log.h"
#include "base/thread.h"
#include "server/dns_resolver.h"

namespace baton::server {

// Addresses of one name that are used; the others of a longer answer are not.
inline constexpr size_t kMaxAddressesOfName = 1024;

// The host and port of "dns:host:port"; nothing for an entry of another form, which is the address
// of one worker.
std::optional<HostPort> SplitDnsEntry(std::string_view entry);

class Discovery {
 public:
  // On the thread of the object: the addresses ("10.0.0.7:50071", "[fd00::7]:50071") of
  // names[name], sorted, each once; maybe none.
  using OnAnswer = std::function<void(size_t name, const std::vector<std::string>& addresses)>;

  // Asks for all names at once, then after each `interval`. `on_answer` may be called before this
  // returns.
  Discovery(std::vector<HostPort> names, Duration interval, std::shared_ptr<NameResolver> resolver,
            OnAnswer on_answer, const Log& log);
  // Ends the thread; no answer follows.
  ~Discovery();

 private:
  void Run();
  void Ask(size_t name);

  const std::vector<HostPort> names_;
  const Duration interval_;
  const std::shared_ptr<NameResolver> resolver_;
  const OnAnswer on_answer_;
  const Log log_;
  std::vector<std::string> failures_;  // the last one of each name, empty when it was answered

  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;  // guarded by mutex_
  Thread thread_;      // last: uses the others
};

}  // namespace baton::server

#endif  // BATON_SERVER_DISCOVERY_H_
