#ifndef BATON_TESTS_TRANSPORT_GROUP_FABRICS_H_
#define BATON_TESTS_TRANSPORT_GROUP_FABRICS_H_

// The kinds of groups that the tests of collectives run on, and ranks as threads of the test.

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "transport/group/group.h"
#include "transport/inproc/inproc_group.h"
#include "transport/ucx/ucx_group.h"

namespace baton::transport {

class GroupFabric {
 public:
  virtual ~GroupFabric() = default;
  // One for each rank of a group of `ranks`; where there are addresses, each knows all, or only
  // rank 0's.
  virtual std::vector<std::unique_ptr<Rendezvous>> NewRendezvous(int ranks,
                                                                 bool knows_all = true) = 0;
};

class InprocGroupFabric : public GroupFabric {
 public:
  std::vector<std::unique_ptr<Rendezvous>> NewRendezvous(int ranks, bool) override {
    std::vector<std::unique_ptr<Rendezvous>> out;
    for (int rank = 0; rank < ranks; ++rank) out.push_back(groups_.NewRendezvous());
    return out;
  }

 private:
  InprocGroups groups_{std::make_shared<MonotonicClock>()};
};

// Ranks in this process that talk over UCX as processes would.
class UcxGroupFabric : public GroupFabric {
 public:
  explicit UcxGroupFabric(std::string tls) : tls_(std::move(tls)) {}
  std::vector<std::unique_ptr<Rendezvous>> NewRendezvous(int ranks, bool knows_all) override {
    UcxGroupOptions options;
    options.tls = tls_;
    options.listen_ip = "127.0.0.1";
    std::vector<std::unique_ptr<UcxRendezvous>> made;
    std::vector<std::string> addresses;
    for (int rank = 0; rank < ranks; ++rank) {
      made.push_back(CreateUcxRendezvous(options, std::make_shared<MonotonicClock>()).value());
      addresses.push_back("127.0.0.1:" + std::to_string(made.back()->port()));
    }
    if (!knows_all) addresses.resize(1);
    std::vector<std::unique_ptr<Rendezvous>> out;
    for (auto& rendezvous : made) {
      rendezvous->SetAddresses(addresses);
      out.push_back(std::move(rendezvous));
    }
    return out;
  }

 private:
  const std::string tls_;
};

struct GroupParam {
  std::string name;
  std::function<std::unique_ptr<GroupFabric>()> make;
};

// Runs `work` for each rank on a thread of its own.
inline void OnRanks(int ranks, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(work, rank);
  for (std::thread& thread : threads) thread.join();
}

inline GroupOptions TestGroup(int ranks, int rank) {
  GroupOptions options;
  options.group_id = "test";
  options.world_size = ranks;
  options.rank = rank;
  options.revision = "r1";
  options.model_hash = "m1";
  options.name = "host" + std::to_string(rank) + ":7000";
  options.reduce_part_bytes = 65536;
  return options;
}

// A group of `ranks` threads and its rendezvous, to form it again.
struct TestGroupOf {
  TestGroupOf(GroupFabric* fabric, int ranks)
      : rendezvous(fabric->NewRendezvous(ranks)), members(static_cast<size_t>(ranks)) {
    Form([ranks](int rank) { return TestGroup(ranks, rank); });
  }
  // All ranks join; dies when one cannot.
  void Form(const std::function<GroupOptions(int)>& options) {
    OnRanks(static_cast<int>(members.size()), [&](int rank) {
      const size_t at = static_cast<size_t>(rank);
      members[at] = rendezvous[at]->Join(options(rank)).value();
    });
  }
  Collectives& at(int rank) { return *members[static_cast<size_t>(rank)]; }
  int size() const { return static_cast<int>(members.size()); }

  std::vector<std::unique_ptr<Rendezvous>> rendezvous;
  std::vector<std::unique_ptr<Collectives>> members;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_GROUP_FABRICS_H_
