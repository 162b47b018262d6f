// Over the emulated NCCL, on the process's own GPU.

#include "tests/simt/options.h"
#include "tests/transport/child_transport.h"
#include "tests/transport/nccl_kv_fabric.h"

namespace baton::transport {

std::unique_ptr<KvTransport> MakeChildTransport(const std::string& argument) {
  NcclTransportOptions options = TestNcclOptions();
  options.memory = argument == "pinned" ? PayloadMemory::kPinned : PayloadMemory::kGpu;
  options.one_sided = argument == "one_sided";
  simt::SetOptions({.nccl_version = kOneSidedNccl});
  return std::make_unique<StagedTransport>(
      CreateNcclTransport(options, std::make_shared<MonotonicClock>()).value());
}

}  // namespace baton::transport
