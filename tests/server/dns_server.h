#ifndef BATON_TESTS_SERVER_DNS_SERVER_H_
#define BATON_TESTS_SERVER_DNS_SERVER_H_

// A name server on loopback (UDP) that knows what it is told. Thread-safe.

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/thread.h"

namespace baton::server {

class DnsServer {
 public:
  DnsServer();
  ~DnsServer();

  // "127.0.0.1:port"
  std::string address() const;

  // The IPv4 addresses of `name` from now on. A name that was never set does not exist.
  void Set(const std::string& name, const std::vector<std::string>& addresses);
  // Queries are read and not answered.
  void SetSilent(bool silent);
  // Queries that came.
  int queries() const { return queries_.load(); }

 private:
  void Run();
  // The reply to a query, or nothing.
  std::string Reply(const std::string& query);

  int socket_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> queries_{0};
  std::mutex mutex_;
  std::map<std::string, std::vector<std::string>> names_;  // guarded by mutex_
  bool silent_ = false;                                    // guarded by mutex_
  std::optional<Thread> thread_;                           // last: uses the others
};

}  // namespace baton::server

#endif  // BATON_TESTS_SERVER_DNS_SERVER_H_
