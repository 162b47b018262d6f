#include "base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "base/suggest.h"

namespace baton {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ConfigTest : public ::testing::Test {
 protected:
  // A file's path for messages is long and random here; tests look at what follows it.
  std::string WriteFile(const std::string& text) {
    const std::string path = ::testing::TempDir() + "baton_config_test.yaml";
    std::ofstream(path) << text;
    return path;
  }

  absl::StatusOr<LoadedConfig> LoadYaml(const std::string& text) {
    return LoadConfig({.file = WriteFile(text)});
  }

  std::string ErrorsOf(const std::string& text) {
    const auto loaded = LoadYaml(text);
    EXPECT_FALSE(loaded.ok());
    return loaded.ok() ? "" : std::string(loaded.status().message());
  }
};

TEST_F(ConfigTest, DefaultsAreTheSchemas) {
  const auto loaded = LoadConfig({});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.router().max_queue(), 1024);
  EXPECT_EQ(loaded->config.model().kv_format(), "bf16");
  EXPECT_EQ(loaded->config.server().grpc_address(), "0.0.0.0:50051");
  EXPECT_TRUE(loaded->config.metrics().vllm_aliases());
  EXPECT_EQ(loaded->config.router().prefill_workers_size(), 0);
  EXPECT_EQ(loaded->origin.at("router.max_queue"), "default");
}

TEST_F(ConfigTest, FileThenEnvironmentThenFlags) {
  const std::string file = WriteFile(
      "router:\n"
      "  max_queue: 10\n"
      "  max_attempts: 5\n"
      "  retry_after_ms: 7\n"
      "  decode_workers: [\"a:1\", \"[::1]:2\"]\n"
      "handoff: {faults: {drop: 0.25}}\n"
      "decode:\n");
  const auto loaded =
      LoadConfig({.file = file,
                  .environment = {{"BATON_ROUTER_MAX_ATTEMPTS", "6"},
                                  {"BATON_ROUTER_RETRY_AFTER_MS", "8"},
                                  {"BATON_ROUTER_PREFILL_WORKERS", "b:3, c:4"},
                                  {"PATH", "/bin"}},
                  .flags = {{"--router.retry_after_ms", "router.retry_after_ms", "9"},
                            {"--port", "server.grpc_address", "0"},
                            {"--metrics.vllm_aliases", "metrics.vllm_aliases", "false"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const v1::Router& router = loaded->config.router();
  EXPECT_EQ(router.max_queue(), 10);
  EXPECT_EQ(router.max_attempts(), 6);
  EXPECT_EQ(router.retry_after_ms(), 9);
  EXPECT_THAT(router.decode_workers(), ElementsAre("a:1", "[::1]:2"));
  EXPECT_THAT(router.prefill_workers(), ElementsAre("b:3", "c:4"));
  EXPECT_EQ(loaded->config.handoff().faults().drop(), 0.25);
  EXPECT_EQ(loaded->config.server().grpc_address(), "0.0.0.0:0");
  EXPECT_FALSE(loaded->config.metrics().vllm_aliases());
  EXPECT_EQ(loaded->origin.at("router.max_queue"), file + ":2");
  EXPECT_EQ(loaded->origin.at("router.max_attempts"), "BATON_ROUTER_MAX_ATTEMPTS");
  EXPECT_EQ(loaded->origin.at("server.grpc_address"), "--port");
}

TEST_F(ConfigTest, EveryProblemIsNamedAtOnce) {
  const std::string errors = ErrorsOf(
      "router:\n"
      "  max_queu: 10\n"
      "  max_attempts: 0\n"
      "  retry_after_ms: soon\n"
      "  decode_workers: a:1\n"
      "model:\n"
      "  kv_format: fp16\n"
      "  page_tokens: [64]\n"
      "  name:\n"
      "max_landings: 3\n"
      "zzzzzz: 1\n"
      "log: loud\n"
      "decode: {pages: 1, pages: 2}\n"
      "server: {grpc_address: \"0.0.0.0\", http_address: \"h:70000\"}\n"
      "handoff: {faults: {drop: 1.5, seed: -1, delay: nan}}\n");
  EXPECT_THAT(errors, StartsWith("the configuration has 16 problems:\n"));
  for (const char* expected : {
           ".yaml:2: unknown key router.max_queu; did you mean router.max_queue?\n",
           ".yaml:3: router.max_attempts: 0 is out of range; allowed: 1 .. 100 attempts; default: "
           "3\n",
           ".yaml:4: router.retry_after_ms: \"soon\" is not a valid value; expected: integer (1 .. "
           "3600000 ms)\n",
           ".yaml:5: router.decode_workers: expected a list, for example [\"10.0.0.7:50061\"",
           ".yaml:7: model.kv_format: \"fp16\" is not one of the allowed values: bf16, fp8; "
           "default: bf16\n",
           ".yaml:8: model.page_tokens: expected one value (integer), not a list or keys\n",
           ".yaml:9: model.name: has no value; give one or remove the line\n",
           ".yaml:10: unknown key max_landings; did you mean decode.max_landings?\n",
           ".yaml:11: unknown key zzzzzz; sections: model, server, router,",
           ".yaml:12: log: expected keys with values",
           ".yaml:13: decode.pages: set twice; remove one of the two\n",
           ".yaml:14: server.grpc_address: \"0.0.0.0\" is not an address; expected host:port",
           ".yaml:14: server.http_address: \"h:70000\" is not an address;",
           ".yaml:15: handoff.faults.drop: 1.5 is out of range; allowed: 0 .. 1; default: 0",
           ".yaml:15: handoff.faults.seed: ",
           ".yaml:15: handoff.faults.delay: \"nan\" is not a valid value;",
       }) {
    EXPECT_THAT(errors, HasSubstr(expected));
  }
}

TEST_F(ConfigTest, WorkersAreAddressesOrNames) {
  const auto loaded = LoadYaml(
      "router:\n"
      "  decode_workers: [\"dns:baton-decode:50071\", \"[::1]:2\"]\n"
      "  dns_server: 127.0.0.1:8600\n");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->config.router().decode_workers(),
              ElementsAre("dns:baton-decode:50071", "[::1]:2"));
  for (const char* bad : {"dns:///baton-decode:50071", "dns:baton-decode", "dns:a:0", "srv:a:1"}) {
    EXPECT_THAT(ErrorsOf(std::string("router: {decode_workers: [\"") + bad + "\"]}\n"),
                HasSubstr(std::string("\"") + bad +
                          "\" is not an address; expected host:port with port 1 .. 65535, for "
                          "example 10.0.0.7:50061, or dns:host:port for a name"));
  }
  EXPECT_THAT(ErrorsOf("router: {dns_server: \"ns1:53\"}\n"),
              HasSubstr("\"ns1:53\" is not an IP address with a port; expected for example "));
}

TEST_F(ConfigTest, NetworksOfHandoffsAreChecked) {
  const std::string good =
      "handoff: {ucx: {tls: \"rc,tcp\", net_devices: \"mlx5_0:1,eth0\", listen_ip: \"::1\"}}\n";
  ASSERT_TRUE(LoadYaml(good).ok()) << LoadYaml(good).status();
  const std::string errors = ErrorsOf(
      "handoff:\n"
      "  ucx:\n"
      "    tls: posix\n"
      "    net_devices: eth0, eth1\n"
      "    listen_ip: host\n"
      "    listen_port: 65536\n");
  EXPECT_THAT(errors, StartsWith("the configuration has 5 problems:\n"));
  for (const char* expected : {
           ".yaml:3: handoff.ucx.tls: \"posix\" lacks tcp, over which connections are agreed on; "
           "add "
           "it: \"posix,tcp\"",
           ".yaml:3: handoff.ucx.tls: \"posix\" has posix, whose shared memory messages of an "
           "ended "
           "group can reach a new one through; write sysv for shared memory, for example "
           "\"sysv,tcp\"",
           ".yaml:4: handoff.ucx.net_devices: \"eth0, eth1\" is not a list of names; expected "
           "names "
           "separated by commas without spaces, for example all\n",
           ".yaml:5: handoff.ucx.listen_ip: \"host\" is not an IP address; expected for example "
           "10.0.0.7, or nothing\n",
           ".yaml:6: handoff.ucx.listen_port: 65536 is out of range; allowed: 0 .. 65535; default: "
           "0\n",
       }) {
    EXPECT_THAT(errors, HasSubstr(expected));
  }
}

TEST_F(ConfigTest, APortIsShownAsItWasGiven) {
  const auto loaded = LoadConfig({.flags = {{"--port", "server.grpc_address", "99999"}}});
  EXPECT_THAT(std::string(loaded.status().message()),
              HasSubstr("--port: server.grpc_address: \"99999\" is not an address; expected "));
}

TEST_F(ConfigTest, EnvironmentAndFlagsAreNamedInErrors) {
  const auto loaded =
      LoadConfig({.environment = {{"BATON_ROUTER_MAX_QUEU", "1"}, {"BATON_LOG_LEVEL", "loud"}},
                  .flags = {{"--router.max_queue", "router.max_queue", "99999999999999999999"},
                            {"--port", "server.grpc_address", "x"}}});
  const std::string errors(loaded.status().message());
  EXPECT_THAT(errors, HasSubstr("BATON_ROUTER_MAX_QUEU: unknown environment variable; did you mean "
                                "BATON_ROUTER_MAX_QUEUE?\n"));
  EXPECT_THAT(
      errors,
      HasSubstr("BATON_LOG_LEVEL: log.level: \"loud\" is not one of the allowed values: debug, "));
  EXPECT_THAT(
      errors,
      HasSubstr(
          "--router.max_queue: 99999999999999999999 is out of range; allowed: integer (1 .. "));
  EXPECT_THAT(
      errors,
      HasSubstr("--port: server.grpc_address: \"x\" is not an address; expected host:port"));
}

TEST_F(ConfigTest, FieldsThatContradictEachOther) {
  const std::string errors = ErrorsOf("decode:\n  max_sequences: 4\n  max_batch_rows: 3\n");
  EXPECT_THAT(
      errors,
      HasSubstr(".yaml:3: decode.max_batch_rows: 3 is less than decode.max_sequences (4, from "));
  EXPECT_THAT(
      errors,
      HasSubstr("default: decode.max_landings: 8 is more than decode.max_sequences (4, from "));
  EXPECT_THAT(ErrorsOf("handoff:\n  max_message_kb: 2048\n  nccl:\n    staging_mb: 1\n"),
              HasSubstr("handoff.nccl.staging_mb: 1 MiB do not hold one message of "
                        "handoff.max_message_kb (2048 KiB, from "));
}

TEST_F(ConfigTest, BrokenFiles) {
  EXPECT_THAT(ErrorsOf("router:\n  max_queue: [1\n"), HasSubstr(".yaml:3: not valid YAML: "));
  EXPECT_THAT(ErrorsOf("- a\n- b\n"), HasSubstr(".yaml:1: the file: expected keys with values"));
  EXPECT_THAT(std::string(LoadConfig({.file = "/nonexistent/baton.yaml"}).status().message()),
              HasSubstr("/nonexistent/baton.yaml: cannot be read: No such file or directory"));
  EXPECT_THAT(std::string(LoadConfig({.file = "/"}).status().message()),
              HasSubstr("/: cannot be read: "));
  EXPECT_THAT(std::string(LoadYaml(std::string(2 << 20, '#')).status().message()),
              HasSubstr("larger than 1 MiB"));
  EXPECT_TRUE(LoadYaml("").ok());
}

TEST_F(ConfigTest, WhatIsPrintedLoadsAgain) {
  const auto loaded = LoadConfig({.environment = {{"BATON_MODEL_NAME", "a \"b\" \\ c"},
                                                  {"BATON_HANDOFF_FAULTS_SEED", "9007199254740991"},
                                                  {"BATON_ROUTER_DECODE_WORKERS", "a:1,b:2"},
                                                  {"BATON_HANDOFF_FAULTS_DROP", "0.1"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::string printed = FormatConfig(*loaded);
  EXPECT_THAT(printed, HasSubstr("  decode_workers: [\"a:1\", \"b:2\"]"));
  EXPECT_THAT(printed, HasSubstr("# BATON_ROUTER_DECODE_WORKERS\n"));
  EXPECT_THAT(printed, HasSubstr("    drop: 0.1 "));
  const auto again = LoadYaml(printed);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->config.SerializeAsString(), loaded->config.SerializeAsString());
}

TEST_F(ConfigTest, EnvironmentSkipsKubernetesServiceLinks) {
  ASSERT_EQ(setenv("BATON_ROUTER_SERVICE_HOST", "10.0.0.1", 1), 0);
  ASSERT_EQ(setenv("BATON_ROUTER_PORT_50051_TCP", "tcp://10.0.0.1:50051", 1), 0);
  ASSERT_EQ(setenv("BATON_LOG_LEVEL", "debug", 1), 0);
  const auto environment = ReadEnvironment();
  EXPECT_THAT(environment, ::testing::Contains(::testing::Pair("BATON_LOG_LEVEL", "debug")));
  EXPECT_THAT(environment, Not(::testing::Contains(::testing::Key("BATON_ROUTER_SERVICE_HOST"))));
  EXPECT_THAT(environment, Not(::testing::Contains(::testing::Key("BATON_ROUTER_PORT_50051_TCP"))));
  unsetenv("BATON_LOG_LEVEL");
}

TEST_F(ConfigTest, NamesDoNotClash) {
  std::set<std::string> names;
  for (const ConfigField& field : ConfigFields()) {
    EXPECT_TRUE(names.insert(field.path).second) << field.path;
    EXPECT_TRUE(names.insert(field.environment).second) << field.environment;
    EXPECT_TRUE(field.alias.empty() || names.insert(field.alias).second) << field.alias;
    EXPECT_THAT(field.help, ::testing::EndsWith(".")) << field.path;
  }
}

TEST_F(ConfigTest, RanksAndTheirAddressesMustFitEachOther) {
  const auto problem = [](std::vector<ConfigFlag> flags) {
    const ConfigOutcome outcome = LoadConfigLeniently({.flags = std::move(flags)});
    return outcome.problems.empty() ? "" : outcome.problems.front();
  };
  const ConfigFlag ranks{"--decode.ranks", "decode.ranks", "3"};
  const ConfigFlag one{"--decode.group_addresses", "decode.group_addresses", "a:1"};
  const ConfigFlag two{"--decode.group_addresses", "decode.group_addresses", "a:1,b:2"};
  const ConfigFlag three{"--decode.group_addresses", "decode.group_addresses", "a:1,b:2,c:3"};
  EXPECT_EQ(problem({ranks, one}), "");
  EXPECT_EQ(problem({ranks, three, {"--decode.rank", "decode.rank", "2"}}), "");
  EXPECT_THAT(problem({ranks, two}),
              HasSubstr("2 addresses for decode.ranks (3, from --decode.ranks)"));
  EXPECT_THAT(problem({ranks, one, {"--decode.rank", "decode.rank", "3"}}),
              HasSubstr("decode.rank: 3 is not less than decode.ranks (3, from"));
  EXPECT_THAT(problem({{"--decode.group_addresses", "decode.group_addresses", "a:0"}}),
              HasSubstr("port 1 .. 65535"));
}

// docs/configuration.md has one table row for each field, with the schema's own words.
TEST_F(ConfigTest, TheDocumentListsTheSchema) {
  std::ifstream file(std::string(BATON_SOURCE_DIR) + "/docs/configuration.md");
  ASSERT_TRUE(file) << "docs/configuration.md is missing";
  std::set<std::string> actual, expected;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("| `")) actual.insert(line);
  }
  for (const ConfigField& field : ConfigFields()) {
    const std::string value = field.default_value.empty() ? "" : "`" + field.default_value + "`";
    const std::string alias = field.alias.empty() ? "" : " Also `--" + field.alias + "`.";
    expected.insert("| `" + field.path + "` | " +
                    (field.allowed.empty() ? field.type : field.allowed) + " | " + value + " | " +
                    field.help + alias + " |");
  }
  for (const std::string& row : expected)
    EXPECT_TRUE(actual.contains(row)) << "missing row:\n" << row;
  for (const std::string& row : actual)
    EXPECT_TRUE(expected.contains(row)) << "stale row:\n" << row;
}

TEST(Suggest, CountsEdits) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("abc", ""), 3);
  EXPECT_EQ(EditDistance("port", "prot"), 1);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(Suggest, FindsWhatWasMeant) {
  const std::vector<std::string> known = {"serve", "router", "router.max_queue"};
  EXPECT_EQ(ClosestMatch("sevre", known), "serve");
  EXPECT_EQ(ClosestMatch("max_queue", known), "router.max_queue");
  EXPECT_EQ(ClosestMatch("benchmark", known), "");
}

}  // namespace
}  // namespace baton
