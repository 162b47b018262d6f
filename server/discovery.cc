#include "server/discovery.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/statusor.h"
#include "base/check.h"

namespace baton::server {
namespace {

constexpr std::string_view kDnsPrefix = "dns:";

}  // namespace

std::optional<HostPort> SplitDnsEntry(std::string_view entry) {
  if (!entry.starts_with(kDnsPrefix)) return std::nullopt;
  const std::string_view name = entry.substr(kDnsPrefix.size());
  // "dns:50071" is port 50071 of a host called dns.
  if (name.find(':') == std::string_view::npos) return std::nullopt;
  return SplitHostPort(name);
}

Discovery::Discovery(std::vector<HostPort> names, Duration interval,
                     std::shared_ptr<NameResolver> resolver, OnAnswer on_answer, const Log& log)
    : names_(std::move(names)),
      interval_(interval),
      resolver_(std::move(resolver)),
      on_answer_(std::move(on_answer)),
      log_(log),
      failures_(names_.size()),
      thread_("discovery", [this] { Run(); }) {}

Discovery::~Discovery() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  resolver_->Cancel();
  thread_.Join();
}

void Discovery::Run() {
  BATON_CHECK(interval_ > Duration());
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    lock.unlock();
    for (size_t name = 0; name < names_.size(); ++name) Ask(name);
    lock.lock();
    stopped_.wait_for(lock, std::chrono::nanoseconds(interval_.nanos()), [this] { return stop_; });
  }
}

void Discovery::Ask(size_t name) {
  const HostPort& of = names_[name];
  const absl::StatusOr<std::vector<std::string>> found = resolver_->Resolve(of.host);
  if (!found.ok()) {
    if (absl::IsCancelled(found.status())) return;
    // One line for each new cause, not one for each try.
    const std::string failure(found.status().message());
    if (failure != std::exchange(failures_[name], failure)) {
      log_.Warning("name not resolved; its workers stay as they are",
                   {{"name", of.host}, {"cause", failure}});
    }
    return;
  }
  failures_[name].clear();
  if (found->size() > kMaxAddressesOfName) {
    log_.Warning("name has more addresses than are used",
                 {{"name", of.host}, {"addresses", found->size()}, {"used", kMaxAddressesOfName}});
  }
  std::vector<std::string> addresses;
  for (size_t i = 0; i < std::min(found->size(), kMaxAddressesOfName); ++i) {
    const std::string& ip = (*found)[i];
    const bool v6 = ip.find(':') != std::string::npos;
    addresses.push_back((v6 ? "[" + ip + "]" : ip) + ":" + of.port);
  }
  on_answer_(name, addresses);
}

}  // namespace baton::server
