#ifndef BATON_BASE_CONFIG_H_
#define BATON_BASE_CONFIG_H_

// Loads the configuration: the schema's defaults (proto/baton/v1/config.proto), then a YAML file,
// then BATON_* environment variables, then flags, each overriding the one before. Strict: an
// unknown key, a value of another type or out of range is an error that names its place, the value,
// what is allowed and the fix; all errors come at once. Functions of their arguments: only
// ReadEnvironment looks at the process.

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/baton/v1/config.pb.h"

namespace baton {

using Config = v1::Config;

// One leaf of the schema, in words.
struct ConfigField {
  std::string path;           // "router.max_queue": YAML key path, and --router.max_queue
  std::string environment;    // "BATON_ROUTER_MAX_QUEUE"
  std::string alias;          // short flag without dashes, or empty
  std::string type;           // "text", "integer", "number", "true or false", "list"
  std::string default_value;  // as a flag's value; may be empty
  std::string allowed;        // "1 .. 1000000 requests", "bf16, fp8", "host:port", or empty
  std::string unit;
  std::string help;
};

struct ConfigSection {
  std::string path;  // "router", "handoff.faults"
  std::string help;
};

// In the schema's order.
std::span<const ConfigField> ConfigFields();
std::span<const ConfigSection> ConfigSections();

struct ConfigFlag {
  std::string spelling;  // as the user wrote it, for messages: "--port"
  std::string path;      // of the field it sets; must exist (checked)
  std::string value;
};

struct ConfigInput {
  std::string file;  // YAML; empty = none
  // Entries whose name does not begin with BATON_ are skipped.
  std::vector<std::pair<std::string, std::string>> environment;
  std::vector<ConfigFlag> flags;  // the last of a field wins
};

struct LoadedConfig {
  Config config;  // every field set
  std::map<std::string, std::string>
      origin;  // path -> "default", "baton.yaml:3", "BATON_..." or "--..."
};

// NOT_FOUND or PERMISSION_DENIED when the file cannot be read, else INVALID_ARGUMENT with one line
// for each problem.
absl::StatusOr<LoadedConfig> LoadConfig(const ConfigInput& input);

// As LoadConfig, for who wants to look further: what could be applied, and each problem (a line
// without newline).
struct ConfigOutcome {
  LoadedConfig loaded;
  std::vector<std::string> problems;
};
ConfigOutcome LoadConfigLeniently(const ConfigInput& input);

// The effective values as a YAML file that loads again, each with its origin as a comment.
std::string FormatConfig(const LoadedConfig& loaded);

// BATON_* of this process, sorted, without the service links that Kubernetes may add
// (BATON_ROUTER_SERVICE_HOST).
std::vector<std::pair<std::string, std::string>> ReadEnvironment();

// host:port or [v6]:port, with a port from 1 to 65535.
bool IsHostPort(std::string_view text);

}  // namespace baton

#endif  // BATON_BASE_CONFIG_H_
