#ifndef BATON_TESTS_DECODE_WORKER_EXPERT_DEATHS_H_
#define BATON_TESTS_DECODE_WORKER_EXPERT_DEATHS_H_

// Several ranks of a group that die, fall silent or come back around the same time: one test body
// for each kind of group, instantiated where the kind is tested.

#include "gtest/gtest.h"
#include "tests/transport/group_fabrics.h"

namespace baton::decode_worker {

class ExpertDeathsTest : public testing::TestWithParam<transport::GroupParam> {};

inline std::string FabricName(const testing::TestParamInfo<transport::GroupParam>& info) {
  return info.param.name;
}

}  // namespace baton::decode_worker

#endif  // BATON_TESTS_DECODE_WORKER_EXPERT_DEATHS_H_
