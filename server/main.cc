// The `baton` command.

#include <stdlib.h>

#include <iostream>
#include <string>
#include <vector>

#include "base/config.h"
#include "kernels/backend.h"
#include "server/cli.h"
#include "server/commands.h"

namespace {

// What CUDA reads when it is first called, unless the user has set it.
void SetUpCuda() {
  // A kernel that is loaded by its first launch may wait for the whole GPU, and calls of NCCL that
  // stand there wait for other ranks.
  setenv("CUDA_MODULE_LOADING", "EAGER", /*replace=*/0);
  // Streams that share one of the GPU's queues wait for each other. 32 is the most.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*replace=*/0);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace baton::server;
  SetUpCuda();
  const std::vector<Command> commands = {
      ServeCommand(),    RouterCommand(), PrefillCommand(), DecodeCommand(),  GenerateCommand(),
      CompleteCommand(), ChatCommand(),   BenchCommand(),   ExpertsCommand(), CheckCommand(),
  };
  return RunCommandLine(commands, {.arguments = std::vector<std::string>(argv + 1, argv + argc),
                                   .environment = baton::ReadEnvironment(),
                                   .backends = baton::kernels::BackendsText(),
                                   .in = std::cin,
                                   .out = std::cout,
                                   .err = std::cerr});
}
