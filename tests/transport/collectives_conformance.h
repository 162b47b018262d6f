#ifndef BATON_TESTS_TRANSPORT_COLLECTIVES_CONFORMANCE_H_
#define BATON_TESTS_TRANSPORT_COLLECTIVES_CONFORMANCE_H_

// What every kind of group must do: instantiate CollectivesConformance with a GroupFabric.

#include <gtest/gtest.h>

#include "tests/transport/group_fabrics.h"

namespace baton::transport {

class CollectivesConformance : public testing::TestWithParam<GroupParam> {
 protected:
  std::unique_ptr<GroupFabric> fabric_ = GetParam().make();
};

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_COLLECTIVES_CONFORMANCE_H_
