// The `baton` command.

#include <iostream>
#include <string>
#include <vector>

#include "base/config.h"
#include "kernels/backend.h"
#include "server/cli.h"
#include "server/commands.h"

int main(int argc, char** argv) {
  using namespace baton::server;
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
