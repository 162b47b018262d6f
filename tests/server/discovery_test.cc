// Names and the addresses behind them.

#include "server/discovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>

#include "tests/server/dns_server.h"

namespace baton::server {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(DnsEntries, AreToldFromAddressesByTheirPrefix) {
  const auto name = SplitDnsEntry("dns:baton-decode:50071");
  ASSERT_TRUE(name.has_value());
  EXPECT_EQ(name->host, "baton-decode");
  EXPECT_EQ(name->port, "50071");
  EXPECT_FALSE(SplitDnsEntry("baton-decode:50071").has_value());
  EXPECT_FALSE(SplitDnsEntry("dns:50071").has_value());  // a host called dns
  EXPECT_FALSE(SplitDnsEntry("[::1]:50071").has_value());
}

TEST(DnsResolver, KnowsLocalhostAsTheMachineDoes) {
  const auto found = MakeDnsResolver("")->Resolve("localhost");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, Contains("127.0.0.1"));
}

TEST(DnsResolver, GivesEveryAddressOnceAndSorted) {
  DnsServer server;
  server.Set("decode.test", {"127.0.0.3", "127.0.0.1", "127.0.0.3", "127.0.0.2"});
  server.Set("empty.test", {});
  const auto resolver = MakeDnsResolver(server.address());
  const auto found = resolver->Resolve("decode.test");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, ElementsAre("127.0.0.1", "127.0.0.2", "127.0.0.3"));
  // An address stands for itself.
  EXPECT_THAT(resolver->Resolve("127.0.0.9").value(), ElementsAre("127.0.0.9"));
  // A name without addresses and a name that is none: nothing is there, and that is an answer.
  EXPECT_THAT(resolver->Resolve("empty.test").value(), IsEmpty());
  EXPECT_THAT(resolver->Resolve("unknown.test").value(), IsEmpty());
}

TEST(DnsResolver, ASilentServerIsAnErrorAndAnAnswerIsNot) {
  const auto nowhere = MakeDnsResolver("127.0.0.1:1")->Resolve("decode.test");
  EXPECT_TRUE(absl::IsUnavailable(nowhere.status())) << nowhere.status();
  EXPECT_THAT(std::string(nowhere.status().message()), HasSubstr("decode.test"));
}

TEST(DnsResolver, CancelEndsAResolveUnderWayAndLaterOnes) {
  DnsServer server;
  server.SetSilent(true);
  const auto resolver = MakeDnsResolver(server.address());
  absl::Status status;
  {
    Thread waiting("resolve", [&] { status = resolver->Resolve("decode.test").status(); });
    while (server.queries() == 0) std::this_thread::yield();
    resolver->Cancel();
  }
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_TRUE(absl::IsCancelled(resolver->Resolve("decode.test").status()));
}

// Says what it is told, and remembers how often it was asked.
class ScriptedResolver final : public NameResolver {
 public:
  absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host) override {
    std::lock_guard<std::mutex> lock(mutex_);
    ++asked_[host];
    changed_.notify_all();
    return answers_.contains(host) ? answers_.at(host) : absl::UnavailableError("no answer");
  }
  void Cancel() override {}
  void Set(const std::string& host, absl::StatusOr<std::vector<std::string>> answer) {
    std::lock_guard<std::mutex> lock(mutex_);
    answers_.insert_or_assign(host, std::move(answer));
  }
  void WaitForAsks(const std::string& host, int more) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&, until = asked_[host] + more] { return asked_[host] >= until; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, absl::StatusOr<std::vector<std::string>>> answers_;
  std::map<std::string, int> asked_;
};

TEST(Discovery, TellsAnswersAgainAndAgainAndFailuresNever) {
  const auto resolver = std::make_shared<ScriptedResolver>();
  resolver->Set("a", std::vector<std::string>{"10.0.0.1", "fd00::1"});
  resolver->Set("b", absl::UnavailableError("down"));
  std::mutex mutex;
  std::vector<std::vector<std::string>> told[2];
  {
    Discovery discovery(
        {{"a", "1"}, {"b", "2"}}, Duration::Millis(1), resolver,
        [&](size_t name, const std::vector<std::string>& addresses) {
          std::lock_guard<std::mutex> lock(mutex);
          told[name].push_back(addresses);
        },
        Log());
    resolver->WaitForAsks("b", 3);
    {
      std::lock_guard<std::mutex> lock(mutex);
      EXPECT_GE(told[0].size(), 2u);
      EXPECT_THAT(told[0][0], ElementsAre("10.0.0.1:1", "[fd00::1]:1"));
      EXPECT_THAT(told[1], IsEmpty());
    }
    resolver->Set("b", std::vector<std::string>{});
    resolver->WaitForAsks("b", 2);
  }
  ASSERT_FALSE(told[1].empty());
  EXPECT_THAT(told[1][0], IsEmpty());
}

}  // namespace
}  // namespace baton::server
