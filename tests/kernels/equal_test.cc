// Ops without float sums give the same bits on every device, and as the reference; of Sample, the
// token.

#include "tests/kernels/op_cases.h"

namespace baton::kernels {
namespace {

class EqualTest : public KernelTest {};

TEST_P(EqualTest, OpsWithoutFloatSumsGiveTheReferencesBits) {
  const OpCases ops;
  for (const char* name :
       {"Embed", "QuantizeFp8", "PagesPack", "PagesUnpack", "MoePermute", "MoeCount", "CopyRows",
        "DispatchPlan", "DispatchPack", "DispatchUnpack", "ReturnPlan", "LogitsMask", "Sample"}) {
    const auto& run = ops.cases.at(name);
    EXPECT_EQ(run(*device_), run(*reference_)) << name;
  }
}

BATON_INSTANTIATE_KERNEL_TEST(EqualTest);

}  // namespace
}  // namespace baton::kernels
