#ifndef BATON_SERVER_CLI_HELP_H_
#define BATON_SERVER_CLI_HELP_H_

// The texts of --help and --version. Pure.

#include <span>
#include <string>

#include "server/cli.h"

namespace baton::server {

std::string OverallHelp(std::span<const Command> commands);
std::string CommandHelp(const Command& command);
std::string VersionText(const std::string& backends);

// "1 .. 9 pieces"; empty without a range and a unit.
std::string RangeText(const CommandFlag& flag);

// The configuration's fields that `command` takes flags for, in the schema's order.
std::vector<ConfigField> ConfigFieldsOf(const Command& command);

}  // namespace baton::server

#endif  // BATON_SERVER_CLI_HELP_H_
