#include "base/config.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/config_schema.h"
#include "base/suggest.h"

namespace baton {
namespace {

using internal::GetSchema;
using internal::SchemaField;

constexpr size_t kMaxFileBytes = size_t{1} << 20;

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(std::string("cannot be read: ") + std::strerror(errno));
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  if (file.bad())
    return absl::DataLossError(std::string("cannot be read: ") + std::strerror(errno));
  if (text.size() > kMaxFileBytes)
    return absl::InvalidArgumentError("larger than 1 MiB; is it the right file?");
  return text;
}

// Collects problems and applies values; one pass over the sources in rising order of precedence.
class Loader {
 public:
  Loader() {
    for (const SchemaField& field : GetSchema().fields) {
      const auto problem =
          field.words.default_value.empty() && !field.leaf().is_repeated() &&
                  field.words.type == "text"
              ? std::nullopt
              : internal::SetFieldFromText(field, field.words.default_value, loaded_.config);
      BATON_CHECK_MSG(!problem.has_value(), "default of " + field.words.path + ": " + *problem);
      loaded_.origin[field.words.path] = "default";
    }
  }

  void ReadFile(const std::string& path) {
    file_ = path;
    const absl::StatusOr<std::string> text = ReadWholeFile(path);
    if (!text.ok()) {
      Problem(path, std::string(text.status().message()));
      return;
    }
    YAML::Node root;
    try {
      root = YAML::Load(*text);
    } catch (const YAML::ParserException& error) {
      Problem(Place(error.mark), "not valid YAML: " + error.msg);
      return;
    }
    if (!root.IsNull()) ReadSection(root, "");
  }

  void ReadEnvironmentEntry(const std::string& name, const std::string& value) {
    if (!name.starts_with("BATON_")) return;
    const SchemaField* field = GetSchema().FindEnvironment(name);
    if (field == nullptr) {
      std::vector<std::string> known;
      for (const SchemaField& f : GetSchema().fields) known.push_back(f.words.environment);
      Problem(name, "unknown environment variable" + DidYouMean(name, known, "unset it"));
      return;
    }
    Apply(*field, name, internal::SetFieldFromText(*field, value, loaded_.config));
  }

  void ReadFlag(const ConfigFlag& flag) {
    const SchemaField* field = GetSchema().Find(flag.path);
    BATON_CHECK_MSG(field != nullptr, "a flag for no field: " + flag.path);
    Apply(*field, flag.spelling, internal::SetFieldFromText(*field, flag.value, loaded_.config));
  }

  ConfigOutcome Finish() {
    CheckAcrossFields();
    return {std::move(loaded_), std::move(problems_)};
  }

 private:
  std::string Place(const YAML::Mark& mark) const {
    return mark.is_null() ? file_ : file_ + ":" + std::to_string(mark.line + 1);
  }

  void Problem(const std::string& place, const std::string& what) {
    problems_.push_back(place + ": " + what);
  }

  static std::string DidYouMean(const std::string& word, const std::vector<std::string>& known,
                                const std::string& otherwise) {
    const std::string match = ClosestMatch(word, known);
    return match.empty() ? "; " + otherwise : "; did you mean " + match + "?";
  }

  void Apply(const SchemaField& field, const std::string& place,
             const std::optional<std::string>& problem) {
    if (problem.has_value()) {
      const bool named = place.ends_with(field.words.path);
      Problem(place, (named ? "" : field.words.path + ": ") + *problem);
    } else {
      loaded_.origin[field.words.path] = place;
    }
  }

  // `prefix` is the section's path with a trailing dot, or empty.
  void ReadSection(const YAML::Node& node, const std::string& prefix) {
    if (!node.IsMap()) {
      const std::string what = prefix.empty() ? "the file" : prefix.substr(0, prefix.size() - 1);
      Problem(Place(node.Mark()), what + ": expected keys with values (\"key: value\" lines)");
      return;
    }
    std::vector<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) {
        Problem(Place(entry.first.Mark()), "a key must be a plain word");
        continue;
      }
      const std::string path = prefix + entry.first.Scalar();
      if (std::find(seen.begin(), seen.end(), path) != seen.end()) {
        Problem(Place(entry.first.Mark()), path + ": set twice; remove one of the two");
        continue;
      }
      seen.push_back(path);
      ReadEntry(path, entry.first, entry.second);
    }
  }

  void ReadEntry(const std::string& path, const YAML::Node& key, const YAML::Node& value) {
    if (GetSchema().IsSection(path)) {
      if (!value.IsNull()) ReadSection(value, path + ".");
      return;
    }
    const SchemaField* field = GetSchema().Find(path);
    if (field == nullptr) {
      Problem(Place(key.Mark()),
              "unknown key " + path + DidYouMean(path, Paths(), KeysBeside(path)));
      return;
    }
    ReadValue(*field, Place(key.Mark()), value);
  }

  void ReadValue(const SchemaField& field, const std::string& place, const YAML::Node& value) {
    if (value.IsNull()) {
      Apply(field, place, "has no value; give one or remove the line");
      return;
    }
    if (field.leaf().is_repeated()) {
      std::vector<std::string> items;
      for (const auto& item : value) {
        if (value.IsSequence() && item.IsScalar()) items.push_back(item.Scalar());
      }
      if (!value.IsSequence() || items.size() != value.size()) {
        Apply(field, place,
              "expected a list, for example [\"10.0.0.7:50061\", \"10.0.0.8:50061\"]");
        return;
      }
      Apply(field, place, internal::SetField(field, items, loaded_.config));
      return;
    }
    if (!value.IsScalar()) {
      Apply(field, place, "expected one value (" + field.words.type + "), not a list or keys");
      return;
    }
    Apply(field, place, internal::SetField(field, {value.Scalar()}, loaded_.config));
  }

  static std::vector<std::string> Paths() {
    std::vector<std::string> paths;
    for (const SchemaField& field : GetSchema().fields) paths.push_back(field.words.path);
    for (const ConfigSection& section : GetSchema().sections) paths.push_back(section.path);
    return paths;
  }

  // "keys of router: a, b" for an unknown router.x; the sections for an unknown section.
  static std::string KeysBeside(const std::string& path) {
    const size_t dot = path.rfind('.');
    const std::string prefix = dot == std::string::npos ? "" : path.substr(0, dot + 1);
    std::string keys;
    for (const std::string& known : Paths()) {
      const bool beside =
          known.starts_with(prefix) && known.find('.', prefix.size()) == std::string::npos;
      if (beside) keys += (keys.empty() ? "" : ", ") + known.substr(prefix.size());
    }
    return (prefix.empty() ? "sections: " : "keys of " + path.substr(0, dot) + ": ") + keys;
  }

  // What no single field can see. Only for values that stand: an earlier problem of either field
  // hides it.
  void CheckAcrossFields() {
    const v1::Decode& decode = loaded_.config.decode();
    if (decode.max_batch_rows() < decode.max_sequences()) {
      Problem(loaded_.origin["decode.max_batch_rows"],
              "decode.max_batch_rows: " + std::to_string(decode.max_batch_rows()) +
                  " is less than decode.max_sequences (" + std::to_string(decode.max_sequences()) +
                  ", from " + loaded_.origin["decode.max_sequences"] +
                  "); each running request needs a row");
    }
    if (decode.max_landings() > decode.max_sequences()) {
      Problem(loaded_.origin["decode.max_landings"],
              "decode.max_landings: " + std::to_string(decode.max_landings()) +
                  " is more than decode.max_sequences (" + std::to_string(decode.max_sequences()) +
                  ", from " + loaded_.origin["decode.max_sequences"] +
                  "); a landing counts as a sequence");
    }
    CheckRanks("prefill", loaded_.config.prefill());
    CheckRanks("decode", decode);
    const v1::Handoff& handoff = loaded_.config.handoff();
    if (handoff.nccl().staging_mb() * 1024 < handoff.max_message_kb()) {
      Problem(loaded_.origin["handoff.nccl.staging_mb"],
              "handoff.nccl.staging_mb: " + std::to_string(handoff.nccl().staging_mb()) +
                  " MiB do not hold one message of handoff.max_message_kb (" +
                  std::to_string(handoff.max_message_kb()) + " KiB, from " +
                  loaded_.origin["handoff.max_message_kb"] + ")");
    }
    const std::string& tls = handoff.ucx().tls();
    if (("," + tls + ",").find(",tcp,") == std::string::npos) {
      Problem(loaded_.origin["handoff.ucx.tls"],
              "handoff.ucx.tls: \"" + tls +
                  "\" lacks tcp, over which connections are agreed on; add it: \"" + tls +
                  ",tcp\"");
    }
    for (const char* name : {"posix", "shm", "sm", "all"}) {
      if (("," + tls + ",").find("," + std::string(name) + ",") == std::string::npos) continue;
      Problem(loaded_.origin["handoff.ucx.tls"],
              "handoff.ucx.tls: \"" + tls + "\" has " + name +
                  ", whose shared memory messages of an ended group can reach a new one through; "
                  "write sysv for shared memory, for example \"sysv,tcp\"");
    }
  }

  template <typename Role>
  void CheckRanks(const std::string& section, const Role& role) {
    const std::string ranks = section + ".ranks (" + std::to_string(role.ranks()) + ", from " +
                              loaded_.origin[section + ".ranks"] + ")";
    if (role.rank() >= role.ranks()) {
      Problem(loaded_.origin[section + ".rank"], section + ".rank: " + std::to_string(role.rank()) +
                                                     " is not less than " + ranks +
                                                     "; ranks count from 0");
    }
    const int addresses = role.group_addresses_size();
    if (addresses > 1 && addresses != role.ranks()) {
      Problem(loaded_.origin[section + ".group_addresses"],
              section + ".group_addresses: " + std::to_string(addresses) + " addresses for " +
                  ranks + "; give rank 0's alone, or one for each rank");
    }
  }

  LoadedConfig loaded_;
  std::string file_;
  std::vector<std::string> problems_;
};

// Kubernetes describes each Service of a namespace to every pod: BATON_ROUTER_SERVICE_HOST,
// BATON_ROUTER_PORT_...
bool IsServiceLink(std::string_view name) {
  return name.find("_SERVICE_HOST") != std::string_view::npos ||
         name.find("_SERVICE_PORT") != std::string_view::npos ||
         name.find("_PORT_") != std::string_view::npos || name.ends_with("_PORT");
}

}  // namespace

std::span<const ConfigField> ConfigFields() {
  static const std::vector<ConfigField> fields = [] {
    std::vector<ConfigField> words;
    for (const SchemaField& field : GetSchema().fields) words.push_back(field.words);
    return words;
  }();
  return fields;
}

std::span<const ConfigSection> ConfigSections() { return GetSchema().sections; }

ConfigOutcome LoadConfigLeniently(const ConfigInput& input) {
  Loader loader;
  if (!input.file.empty()) loader.ReadFile(input.file);
  for (const auto& [name, value] : input.environment) loader.ReadEnvironmentEntry(name, value);
  for (const ConfigFlag& flag : input.flags) loader.ReadFlag(flag);
  return loader.Finish();
}

absl::StatusOr<LoadedConfig> LoadConfig(const ConfigInput& input) {
  ConfigOutcome outcome = LoadConfigLeniently(input);
  if (outcome.problems.empty()) return std::move(outcome.loaded);
  const size_t count = outcome.problems.size();
  std::string message =
      "the configuration has " + std::to_string(count) + (count == 1 ? " problem:" : " problems:");
  for (const std::string& problem : outcome.problems) message += "\n  " + problem;
  return absl::InvalidArgumentError(message);
}

std::string FormatConfig(const LoadedConfig& loaded) {
  constexpr size_t kCommentColumn = 48;
  std::ostringstream out;
  std::vector<std::string> open;  // sections that the last line stood in
  for (const SchemaField& field : GetSchema().fields) {
    std::vector<std::string> sections;
    for (size_t i = 0; i + 1 < field.chain.size(); ++i) sections.push_back(field.chain[i]->name());
    size_t shared = 0;
    while (shared < std::min(open.size(), sections.size()) && open[shared] == sections[shared])
      ++shared;
    for (size_t i = shared; i < sections.size(); ++i) {
      out << std::string(2 * i, ' ') << sections[i] << ":\n";
    }
    open = sections;
    std::string line = std::string(2 * sections.size(), ' ') + field.leaf().name() + ": " +
                       internal::FieldAsYaml(field, loaded.config);
    line.resize(std::max(line.size() + 2, kCommentColumn), ' ');
    out << line << "# " << loaded.origin.at(field.words.path) << '\n';
  }
  return out.str();
}

bool IsHostPort(std::string_view text) { return internal::IsHostPort(text); }

std::vector<std::pair<std::string, std::string>> ReadEnvironment() {
  std::vector<std::pair<std::string, std::string>> found;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos || !text.starts_with("BATON_")) continue;
    const std::string name(text.substr(0, equals));
    if (IsServiceLink(name) && GetSchema().FindEnvironment(name) == nullptr) continue;
    found.emplace_back(name, text.substr(equals + 1));
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace baton
