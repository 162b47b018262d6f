#ifndef BATON_SERVER_CLI_H_
#define BATON_SERVER_CLI_H_

// The `baton` command line: finds the subcommand, parses its flags, loads the configuration, prints
// help. Each subcommand is a Command value made in server/main_<name>.cc; main.cc lists them.
// Nothing here is global: streams, arguments and environment are passed in. Single-threaded.
//
// Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong (nothing was
// started).

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/log.h"

namespace baton::server {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// kAddress: host:port, read as text.
enum class FlagType : uint8_t { kText, kAddress, kInteger, kNumber, kSwitch };

// A flag of one subcommand, beside those that the configuration gives it.
struct CommandFlag {
  std::string name;  // without dashes: "max-tokens"
  FlagType type = FlagType::kText;
  std::string help;           // one sentence or two
  std::string default_value;  // empty: not set unless given
  std::string unit = {};
  double min = 0;  // numbers: inclusive range; checked when max > min
  double max = 0;
};

// The parsed and checked values of a subcommand's flags. Asking for a flag that was not declared
// with that type is a bug; reading an unset one gives empty text, 0 or false.
class FlagValues {
 public:
  bool has(std::string_view name) const;  // given, or has a default
  std::string text(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  bool on(std::string_view name) const;

 private:
  friend class CommandLine;
  struct Value {
    FlagType type;
    std::optional<std::string> text;
  };
  const Value& Find(std::string_view name, FlagType type) const;
  std::map<std::string, Value, std::less<>> values_;
};

// What a subcommand runs with.
struct CommandContext {
  LoadedConfig loaded;
  FlagValues flags;
  std::vector<std::string> arguments;  // what is not a flag
  Log log;                             // as the configuration says
  // Always empty, except for a command with reports_config_problems.
  std::vector<std::string> config_problems;
  std::istream& in;
  std::ostream& out;  // results
  std::ostream& err;  // words for people
  const Config& config() const { return loaded.config; }
};

struct Command {
  std::string name;
  std::string summary;                  // a line in the list of commands
  std::string description;              // paragraphs in its own help
  std::string arguments = {};           // "[PROMPT]", for help; empty: takes none
  int min_arguments = 0;                //
  int max_arguments = 0;                //
  std::vector<CommandFlag> flags = {};  // its own
  // Sections ("decode") or fields ("server.http_address") of the configuration that it takes flags
  // for. Empty: it reads no configuration at all.
  std::vector<std::string> config = {};
  // Runs in spite of a wrong configuration, with what of it could be applied.
  bool reports_config_problems = false;
  std::function<int(const CommandContext&)> run = {};
};

struct CommandLineInput {
  std::vector<std::string> arguments;  // without the program's name
  std::vector<std::pair<std::string, std::string>> environment;
  std::string backends;  // of this binary, for --version
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
};

// Runs the subcommand that the arguments name and returns the process's exit code.
int RunCommandLine(std::span<const Command> commands, const CommandLineInput& input);

// The directory of the configured model (config.model.path), or of the demo model that comes with
// Baton when none is configured. NOT_FOUND, with the places looked at, when there is no config.json
// in it.
absl::StatusOr<std::string> ModelDirectory(const Config& config);

// The name that clients use for it: config.model.name, or the directory's last component.
std::string ModelName(const Config& config, std::string_view directory);

}  // namespace baton::server

#endif  // BATON_SERVER_CLI_H_
