#include "server/cli.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <ostream>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/suggest.h"
#include "server/cli_help.h"

namespace baton::server {
namespace {

constexpr std::string_view kConfigFlag = "config";
constexpr std::string_view kPrintConfigFlag = "print-config";

template <typename Number>
std::optional<Number> ParseWhole(std::string_view text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

// What is wrong with a flag's value, or nullopt.
std::optional<std::string> CheckFlag(const CommandFlag& flag, const std::string& text) {
  double value = 0;
  if (flag.type == FlagType::kText) return std::nullopt;
  if (flag.type == FlagType::kAddress) {
    if (IsHostPort(text)) return std::nullopt;
    return "\"" + text + "\" is not host:port; for example " +
           (flag.default_value.empty() ? "localhost:50051" : flag.default_value);
  }
  if (flag.type == FlagType::kSwitch) {
    if (text == "true" || text == "false") return std::nullopt;
    return "\"" + text + "\" is not a valid value; expected true or false";
  }
  if (flag.type == FlagType::kInteger) {
    const std::optional<int64_t> parsed = ParseWhole<int64_t>(text);
    if (!parsed) return "\"" + text + "\" is not an integer";
    value = static_cast<double>(*parsed);
  } else {
    const std::optional<double> parsed = ParseWhole<double>(text);
    if (!parsed || !std::isfinite(*parsed)) return "\"" + text + "\" is not a number";
    value = *parsed;
  }
  if (flag.max > flag.min && (value < flag.min || value > flag.max)) {
    return text + " is out of range; allowed: " + RangeText(flag);
  }
  return std::nullopt;
}

LogOptions LogOptionsOf(const Config& config) {
  LogOptions options;
  const std::string& level = config.log().level();
  if (level == "debug") options.level = LogLevel::kDebug;
  if (level == "warning") options.level = LogLevel::kWarning;
  if (level == "error") options.level = LogLevel::kError;
  if (level == "off") options.level = LogLevel::kOff;
  if (config.log().format() == "json") options.format = LogFormat::kJson;
  return options;
}

}  // namespace

// Parses the arguments of one subcommand; collects every problem before it reports any.
class CommandLine {
 public:
  explicit CommandLine(const Command& command)
      : command_(command), fields_(ConfigFieldsOf(command)) {
    for (const CommandFlag& flag : command.flags) {
      FlagValues::Value value{flag.type, std::nullopt};
      if (!flag.default_value.empty()) {
        BATON_CHECK_MSG(!CheckFlag(flag, flag.default_value), "default of --" + flag.name);
        value.text = flag.default_value;
      }
      values_.values_.emplace(flag.name, std::move(value));
    }
  }

  void Parse(std::span<const std::string> arguments) {
    bool flags_end = false;
    for (next_ = 0; next_ < arguments.size();) {
      const std::string& argument = arguments[next_++];
      if (flags_end || !argument.starts_with("-") || argument == "-") {
        positional_.push_back(argument);
      } else if (argument == "--") {
        flags_end = true;
      } else if (argument == "--help" || argument == "-h") {
        help_ = true;
      } else {
        ParseFlag(argument, arguments);
      }
    }
    if (positional_.size() < static_cast<size_t>(command_.min_arguments)) {
      problems_.push_back("no " + command_.arguments + " given; baton " + command_.name +
                          " [flags] " + command_.arguments);
    }
    if (positional_.size() > static_cast<size_t>(command_.max_arguments)) {
      const std::string& extra = positional_[static_cast<size_t>(command_.max_arguments)];
      problems_.push_back(
          "unexpected argument \"" + extra + "\"" +
          (command_.max_arguments == 0 ? "; " + command_.name + " takes flags only" : ""));
    }
  }

  bool help() const { return help_; }
  bool print_config() const { return print_config_; }
  bool has_config() const { return !command_.config.empty(); }
  const std::vector<std::string>& problems() const { return problems_; }
  const std::vector<std::string>& positional() const { return positional_; }
  const FlagValues& values() const { return values_; }
  ConfigInput TakeConfigInput() { return std::move(config_input_); }

 private:
  void ParseFlag(const std::string& argument, std::span<const std::string> arguments) {
    const size_t equals = argument.find('=');
    const std::string spelling = argument.substr(0, equals);
    const std::string name =
        spelling.substr(std::min(spelling.find_first_not_of('-'), spelling.size()));
    std::optional<std::string> value;
    if (equals != std::string::npos) value = argument.substr(equals + 1);

    const auto own = std::find_if(command_.flags.begin(), command_.flags.end(),
                                  [&](const CommandFlag& flag) { return flag.name == name; });
    const auto field = std::find_if(fields_.begin(), fields_.end(), [&](const ConfigField& f) {
      return f.path == name || (!f.alias.empty() && f.alias == name);
    });
    const bool with_dashes = spelling.starts_with("--");
    if (with_dashes && own != command_.flags.end()) {
      const bool is_switch = own->type == FlagType::kSwitch;
      if (!TakeValue(spelling, is_switch, arguments, value)) return;
      SetOwn(*own, spelling, *value);
    } else if (with_dashes && field != fields_.end()) {
      if (!TakeValue(spelling, field->type == "true or false", arguments, value)) return;
      config_input_.flags.push_back({spelling, field->path, *value});
    } else if (with_dashes && has_config() && name == kConfigFlag) {
      if (TakeValue(spelling, false, arguments, value)) config_input_.file = *value;
    } else if (with_dashes && has_config() && name == kPrintConfigFlag) {
      print_config_ = true;
    } else {
      Unknown(spelling, name);
      // Its value is no problem of its own.
      const bool value_follows =
          !value.has_value() && next_ < arguments.size() && !arguments[next_].starts_with("-");
      if (value_follows && command_.max_arguments == 0) ++next_;
    }
  }

  // Fills `value` from the next argument when the flag has none of its own. A switch alone means
  // true.
  bool TakeValue(const std::string& spelling, bool is_switch,
                 std::span<const std::string> arguments, std::optional<std::string>& value) {
    if (value.has_value()) return true;
    const bool there = next_ < arguments.size() && !arguments[next_].starts_with("--");
    if (is_switch) {
      const bool spoken = there && (arguments[next_] == "true" || arguments[next_] == "false");
      value = spoken ? arguments[next_++] : "true";
      return true;
    }
    if (!there) {
      problems_.push_back(spelling + " needs a value: " + spelling + "=VALUE");
      return false;
    }
    value = arguments[next_++];
    return true;
  }

  void SetOwn(const CommandFlag& flag, const std::string& spelling, const std::string& text) {
    if (const auto problem = CheckFlag(flag, text)) {
      problems_.push_back(spelling + ": " + *problem);
      return;
    }
    values_.values_.find(flag.name)->second.text = text;
  }

  void Unknown(const std::string& spelling, const std::string& name) {
    std::vector<std::string> known = {"help"};
    if (has_config())
      known.insert(known.end(), {std::string(kConfigFlag), std::string(kPrintConfigFlag)});
    for (const CommandFlag& flag : command_.flags) known.push_back(flag.name);
    for (const ConfigField& field : fields_) {
      known.push_back(field.path);
      if (!field.alias.empty()) known.push_back(field.alias);
    }
    const std::string match = ClosestMatch(name, known);
    problems_.push_back("unknown flag " + spelling +
                        (match.empty() ? "; baton " + command_.name + " --help lists the flags"
                                       : "; did you mean --" + match + "?"));
  }

  const Command& command_;
  const std::vector<ConfigField> fields_;
  size_t next_ = 0;
  bool help_ = false;
  bool print_config_ = false;
  FlagValues values_;
  ConfigInput config_input_;
  std::vector<std::string> positional_;
  std::vector<std::string> problems_;
};

const FlagValues::Value& FlagValues::Find(std::string_view name, FlagType type) const {
  const auto it = values_.find(name);
  BATON_CHECK_MSG(it != values_.end() && it->second.type == type,
                  "flag not declared so: " + std::string(name));
  return it->second;
}

bool FlagValues::has(std::string_view name) const {
  const auto it = values_.find(name);
  BATON_CHECK_MSG(it != values_.end(), "flag not declared: " + std::string(name));
  return it->second.text.has_value();
}

std::string FlagValues::text(std::string_view name) const {
  const auto it = values_.find(name);
  const bool address = it != values_.end() && it->second.type == FlagType::kAddress;
  return Find(name, address ? FlagType::kAddress : FlagType::kText).text.value_or(std::string());
}

int64_t FlagValues::integer(std::string_view name) const {
  return ParseWhole<int64_t>(Find(name, FlagType::kInteger).text.value_or("0")).value();
}

double FlagValues::number(std::string_view name) const {
  return ParseWhole<double>(Find(name, FlagType::kNumber).text.value_or("0")).value();
}

bool FlagValues::on(std::string_view name) const {
  return Find(name, FlagType::kSwitch).text == "true";
}

int RunCommandLine(std::span<const Command> commands, const CommandLineInput& input) {
  const std::string first = input.arguments.empty() ? "" : input.arguments[0];
  if (first == "--version") {
    input.out << VersionText(input.backends);
    return kExitOk;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    input.out << OverallHelp(commands);
    return kExitOk;
  }
  if (first.empty()) {
    input.err << OverallHelp(commands);
    return kExitUsage;
  }
  const auto command =
      std::find_if(commands.begin(), commands.end(),
                   [&](const Command& candidate) { return candidate.name == first; });
  if (command == commands.end()) {
    std::vector<std::string> names;
    for (const Command& known : commands) names.push_back(known.name);
    const std::string match = ClosestMatch(first, names);
    input.err << "error: unknown command \"" << first << "\"; "
              << (match.empty() ? "baton --help lists the commands"
                                : "did you mean baton " + match + "?")
              << '\n';
    return kExitUsage;
  }

  CommandLine line(*command);
  line.Parse(std::span(input.arguments).subspan(1));
  if (line.help()) {
    input.out << CommandHelp(*command);
    return kExitOk;
  }
  if (!line.problems().empty()) {
    for (const std::string& problem : line.problems()) input.err << "error: " << problem << '\n';
    return kExitUsage;
  }
  ConfigInput config_input = line.TakeConfigInput();
  if (line.has_config()) config_input.environment = input.environment;
  ConfigOutcome outcome = LoadConfigLeniently(config_input);
  if (!outcome.problems.empty() && !command->reports_config_problems) {
    input.err << "error: the configuration has " << outcome.problems.size()
              << (outcome.problems.size() == 1 ? " problem:" : " problems:") << '\n';
    for (const std::string& problem : outcome.problems) input.err << "  " << problem << '\n';
    return kExitUsage;
  }
  if (line.print_config()) {
    input.out << FormatConfig(outcome.loaded);
    return kExitOk;
  }
  const Log log(LogOptionsOf(outcome.loaded.config));
  return command->run({.loaded = std::move(outcome.loaded),
                       .flags = line.values(),
                       .arguments = line.positional(),
                       .log = log,
                       .config_problems = std::move(outcome.problems),
                       .in = input.in,
                       .out = input.out,
                       .err = input.err});
}

absl::StatusOr<std::string> ModelDirectory(const Config& config) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const auto holds_model = [&](const fs::path& path) {
    return fs::is_regular_file(path / "config.json", ignored);
  };
  if (!config.model().path().empty()) {
    const fs::path path = config.model().path();
    if (holds_model(path)) return path.string();
    return absl::NotFoundError(
        "model.path: no checkpoint in " + path.string() +
        " (it has no config.json); name a Hugging Face checkpoint directory");
  }
  // Beside an installed binary, in the source tree of a build folder, or where this binary was
  // built.
  const fs::path folder = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  std::string tried;
  for (const fs::path& path : {folder / "../share/baton/models/demo", folder / "../../models/demo",
                               fs::path(BATON_DEMO_DIR)}) {
    if (holds_model(path)) return fs::canonical(path, ignored).string();
    tried += (tried.empty() ? "" : ", ") + path.lexically_normal().string();
  }
  return absl::NotFoundError("the demo model is in none of: " + tried +
                             "; name a checkpoint with --model");
}

std::string ModelName(const Config& config, std::string_view directory) {
  if (!config.model().name().empty()) return config.model().name();
  while (directory.size() > 1 && directory.ends_with('/')) directory.remove_suffix(1);
  return std::filesystem::path(directory).filename().string();
}

}  // namespace baton::server
