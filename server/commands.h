#ifndef BATON_SERVER_COMMANDS_H_
#define BATON_SERVER_COMMANDS_H_

// The subcommands of `baton`, each made in the main_<name>.cc of its name.

#include "server/cli.h"

namespace baton::server {

Command GenerateCommand();
Command CheckCommand();
Command ServeCommand();
Command RouterCommand();
Command PrefillCommand();
Command DecodeCommand();
Command CompleteCommand();
Command ChatCommand();
Command BenchCommand();
Command ExpertsCommand();

}  // namespace baton::server

#endif  // BATON_SERVER_COMMANDS_H_
