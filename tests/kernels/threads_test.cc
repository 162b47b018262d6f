// Every op gives the same bits with 1, 2 and 3 threads, also where so little work would stay on one
// thread: the devices here share out whatever they can (DeviceOptions::min_parallel_work).

#include <set>
#include <string>

#include "kernels/op_list.h"
#include "tests/kernels/op_cases.h"

namespace baton::kernels {
namespace {

std::set<std::string> OpNames() {
#define BATON_OP_NAME(Name, entry) #Name,
  return {BATON_KERNEL_OPS(BATON_OP_NAME)};
#undef BATON_OP_NAME
}

TEST(ThreadsTest, EveryOpHasItsCase) {
  std::set<std::string> names;
  for (const auto& [name, run] : OpCases().cases) names.insert(name);
  EXPECT_EQ(names, OpNames());
}

TEST(ThreadsTest, SameBitsWhateverTheNumberOfThreads) {
  const OpCases ops;
  for (const IsaLevel isa : IsaLevels()) {
    const auto alone = MakeDevice(BackendKind::kCpu, 1, isa);
    for (const int threads : {1, 2, 3}) {
      const auto device = SplittingDevice(threads, isa);
      for (const auto& [name, run] : ops.cases) {
        EXPECT_EQ(run(*device), run(*alone)) << name << " " << IsaName(isa) << " " << threads;
      }
    }
  }
}

}  // namespace
}  // namespace baton::kernels
