#include "server/cli_help.h"

#include <algorithm>

#include "base/build_info.h"

namespace baton::server {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kHelpColumn = 6;

// `text` in lines of at most kWidth columns, each indented; existing newlines begin a new line.
std::string Wrap(std::string_view text, size_t indent) {
  std::string out;
  while (!text.empty()) {
    const size_t newline = std::min(text.find('\n'), text.size());
    std::string_view paragraph = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    std::string line(indent, ' ');
    while (!paragraph.empty()) {
      const size_t space = std::min(paragraph.find(' '), paragraph.size());
      const std::string_view word = paragraph.substr(0, space);
      paragraph.remove_prefix(std::min(space + 1, paragraph.size()));
      if (line.size() > indent && line.size() + 1 + word.size() > kWidth) {
        out += line + '\n';
        line.assign(indent, ' ');
      }
      if (line.size() > indent) line += ' ';
      line += word;
    }
    out += (line.size() > indent ? line : "") + '\n';
  }
  return out;
}

std::string FlagText(const std::string& spelling, const std::string& placeholder,
                     const std::string& help, const std::string& allowed,
                     const std::string& default_value) {
  std::string notes;
  if (!allowed.empty()) notes = allowed;
  if (!default_value.empty())
    notes += (notes.empty() ? "default: " : "; default: ") + default_value;
  std::string words = help;
  if (!notes.empty()) words += " (" + notes + ")";
  return "  " + spelling + (placeholder.empty() ? "" : " " + placeholder) + '\n' +
         Wrap(words, kHelpColumn);
}

std::string Placeholder(const ConfigField& field) {
  if (field.type == "true or false") return "true|false";
  if (field.type == "list") return "A,B";
  if (!field.unit.empty()) {
    std::string unit = field.unit;
    std::transform(unit.begin(), unit.end(), unit.begin(),
                   [](unsigned char c) { return std::toupper(c); });
    return unit;
  }
  if (field.type == "text") return field.allowed == "host:port" ? "ADDRESS" : "TEXT";
  return "NUMBER";
}

std::string OwnFlags(const Command& command) {
  std::string out;
  for (const CommandFlag& flag : command.flags) {
    std::string placeholder;
    if (flag.type == FlagType::kText) placeholder = "TEXT";
    if (flag.type == FlagType::kAddress) placeholder = "ADDRESS";
    if (flag.type == FlagType::kInteger || flag.type == FlagType::kNumber) placeholder = "NUMBER";
    out += FlagText("--" + flag.name, placeholder, flag.help, RangeText(flag), flag.default_value);
  }
  return out;
}

}  // namespace

std::string RangeText(const CommandFlag& flag) {
  const auto number = [](double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
    return text;
  };
  std::string range;
  if (flag.max > flag.min) range = number(flag.min) + " .. " + number(flag.max);
  if (!flag.unit.empty()) range += (range.empty() ? "" : " ") + flag.unit;
  return range;
}

std::string VersionText(const std::string& backends) {
  return "baton " + std::string(Version()) + " (" + std::string(Revision()) +
         ")\nbackends: " + backends + "\n";
}

std::vector<ConfigField> ConfigFieldsOf(const Command& command) {
  std::vector<ConfigField> fields;
  for (const ConfigField& field : ConfigFields()) {
    const bool taken =
        std::any_of(command.config.begin(), command.config.end(), [&](const std::string& path) {
          return field.path == path || field.path.starts_with(path + ".");
        });
    if (taken) fields.push_back(field);
  }
  return fields;
}

std::string OverallHelp(std::span<const Command> commands) {
  std::string out =
      "Baton serves DeepSeek-family models with prefill and decode on separate workers.\n\n"
      "Usage: baton COMMAND [flags]\n\n"
      "Commands:\n";
  for (const Command& command : commands) {
    std::string line = "  " + command.name;
    line.resize(std::max<size_t>(line.size() + 2, 12), ' ');
    out += line + command.summary + '\n';
  }
  out +=
      "\n"
      "baton COMMAND --help shows a command's flags, baton --version the version.\n"
      "Start with: baton serve\n";
  return out;
}

std::string CommandHelp(const Command& command) {
  std::string out = "Usage: baton " + command.name + " [flags]";
  if (!command.arguments.empty()) out += " " + command.arguments;
  out += "\n\n" + Wrap(command.description, 0);
  const std::string own = OwnFlags(command);
  if (!own.empty()) out += "\nFlags:\n" + own;
  const std::vector<ConfigField> fields = ConfigFieldsOf(command);
  if (!fields.empty()) {
    out += "\nConfiguration:\n";
    out += FlagText("--config", "FILE", "YAML file with any of the settings below.", "", "");
    out += FlagText("--print-config", "",
                    "Print the effective settings and where each came from, then exit.", "", "");
    out += Wrap(
        "Each setting can stand in the file, in an environment variable (BATON_ROUTER_MAX_QUEUE "
        "for "
        "router.max_queue) or in a flag; the later of these wins.",
        2);
  }
  std::string section;
  for (const ConfigField& field : fields) {
    const std::string here = field.path.substr(0, field.path.rfind('.'));
    if (here != section) {
      section = here;
      const auto sections = ConfigSections();
      const auto words = std::find_if(sections.begin(), sections.end(),
                                      [&](const ConfigSection& s) { return s.path == section; });
      out += "\n" + section + ": " + words->help + "\n";
    }
    std::string spelling = "--" + field.path;
    if (!field.alias.empty()) spelling += ", --" + field.alias;
    const bool listed = field.type == "true or false" || field.allowed == "host:port";
    out += FlagText(spelling, Placeholder(field), field.help, listed ? "" : field.allowed,
                    field.default_value);
  }
  return out;
}

}  // namespace baton::server
