#ifndef BATON_TESTS_TRANSPORT_GROUP_PROCESS_CONFORMANCE_H_
#define BATON_TESTS_TRANSPORT_GROUP_PROCESS_CONFORMANCE_H_

// What every kind of group of processes does when ranks start late, are killed, stopped, and
// started again: instantiated for UCX and NCCL.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/transport/group_processes.h"

namespace baton::transport {

struct GroupProcessParam {
  std::string name;
  std::string program;  // collectives_child, or one like it
  std::string tls;
};

class GroupProcessTest : public testing::TestWithParam<GroupProcessParam> {
 protected:
  void Start(const std::string& mode, int rank, const std::string& seconds = "60") {
    if (ranks_.size() <= static_cast<size_t>(rank)) ranks_.resize(static_cast<size_t>(rank) + 1);
    at(rank) =
        StartRank(mode, GetParam().tls, size_, rank, addresses_, seconds, GetParam().program);
  }
  void UseRanks(int size) {
    size_ = size;
    addresses_ = FreeAddresses(size);
  }
  std::unique_ptr<ChildProcess>& at(int rank) { return ranks_[static_cast<size_t>(rank)]; }

  int size_ = 0;
  std::string addresses_;
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_GROUP_PROCESS_CONFORMANCE_H_
