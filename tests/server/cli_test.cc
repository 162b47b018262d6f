#include "server/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "server/cli_help.h"

namespace baton::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    commands_.push_back({.name = "work",
                         .summary = "does work",
                         .description = "Does some work.",
                         .arguments = "[WHAT]",
                         .max_arguments = 1,
                         .flags = {{"count", FlagType::kInteger, "How many.", "3", "pieces", 1, 9},
                                   {"share", FlagType::kNumber, "How much.", "", "", 0, 1},
                                   {"name", FlagType::kText, "Whose.", ""},
                                   {"at", FlagType::kAddress, "Where.", ""},
                                   {"fast", FlagType::kSwitch, "Or slow.", ""}},
                         .config = {"router", "server.http_address", "log", "metrics"},
                         .run = [this](const CommandContext& context) {
                           ++runs_;
                           config_ = context.config();
                           flags_ = context.flags;
                           arguments_ = context.arguments;
                           problems_ = context.config_problems;
                           return 0;
                         }});
    commands_.push_back(commands_[0]);
    commands_[1].name = "inspect";
    commands_[1].reports_config_problems = true;
    commands_.push_back(
        {.name = "plain", .summary = "", .description = "", .run = [](const CommandContext&) {
           return 1;
         }});
  }

  int Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    return RunCommandLine(commands_, {.arguments = std::move(arguments),
                                      .environment = environment_,
                                      .backends = "cpu, another",
                                      .in = in_,
                                      .out = out_,
                                      .err = err_});
  }

  std::vector<Command> commands_;
  std::vector<std::pair<std::string, std::string>> environment_;
  std::istringstream in_;
  std::ostringstream out_, err_;
  int runs_ = 0;
  Config config_;
  FlagValues flags_;
  std::vector<std::string> arguments_;
  std::vector<std::string> problems_;
};

TEST_F(CliTest, FlagsInEveryForm) {
  ASSERT_EQ(Run({"work", "--count=5", "--share", "0.5", "--fast", "--router.max_queue", "7",
                 "thing", "--metrics.vllm_aliases=false", "--http-port=0", "--name", "-x"}),
            0)
      << err_.str();
  EXPECT_EQ(flags_.integer("count"), 5);
  EXPECT_EQ(flags_.number("share"), 0.5);
  EXPECT_TRUE(flags_.on("fast"));
  EXPECT_EQ(flags_.text("name"), "-x");
  EXPECT_EQ(config_.router().max_queue(), 7);
  EXPECT_EQ(config_.server().http_address(), "0.0.0.0:0");
  EXPECT_FALSE(config_.metrics().vllm_aliases());
  EXPECT_THAT(arguments_, ElementsAre("thing"));
}

TEST_F(CliTest, SwitchesTakeTheirNeighbourOnlyWhenItIsAValue) {
  ASSERT_EQ(Run({"work", "--metrics.vllm_aliases", "false", "--fast", "thing"}), 0) << err_.str();
  EXPECT_FALSE(config_.metrics().vllm_aliases());
  EXPECT_TRUE(flags_.on("fast"));
  EXPECT_THAT(arguments_, ElementsAre("thing"));
}

TEST_F(CliTest, DefaultsAndUnsetFlags) {
  ASSERT_EQ(Run({"work", "--", "--count"}), 0);
  EXPECT_EQ(flags_.integer("count"), 3);
  EXPECT_FALSE(flags_.has("share"));
  EXPECT_FALSE(flags_.on("fast"));
  EXPECT_THAT(arguments_, ElementsAre("--count"));
}

TEST_F(CliTest, EveryProblemOfTheLineAtOnce) {
  EXPECT_EQ(Run({"work", "--cuont", "3", "--count=10", "--share=much", "--at=here", "--max_queue=1",
                 "--router.max_queues=2", "--qqqqqq", "-v", "two", "--name"}),
            kExitUsage);
  const std::string errors = err_.str();
  for (const char* expected : {
           "error: unknown flag --cuont; did you mean --count?\n",
           "error: --count: 10 is out of range; allowed: 1 .. 9 pieces\n",
           "error: --share: \"much\" is not a number\n",
           "error: --at: \"here\" is not host:port; for example localhost:50051\n",
           "error: unknown flag --max_queue; did you mean --router.max_queue?\n",
           "error: unknown flag --router.max_queues; did you mean --router.max_queue?\n",
           "error: unknown flag --qqqqqq; baton work --help lists the flags\n",
           "error: unknown flag -v; ",
           "error: --name needs a value: --name=VALUE\n",
           "error: unexpected argument \"two\"",
       }) {
    EXPECT_THAT(errors, HasSubstr(expected));
  }
  EXPECT_EQ(runs_, 0);
}

TEST_F(CliTest, AMisspelledFlagsValueIsNoSecondProblem) {
  EXPECT_EQ(Run({"plain", "--helq", "3"}), kExitUsage);
  EXPECT_EQ(err_.str(), "error: unknown flag --helq; did you mean --help?\n");
}

TEST_F(CliTest, ArgumentsThatAreNeededAreNamed) {
  commands_[0].arguments = "WHAT";
  commands_[0].min_arguments = 1;
  EXPECT_EQ(Run({"work"}), kExitUsage);
  EXPECT_EQ(err_.str(), "error: no WHAT given; baton work [flags] WHAT\n");
  EXPECT_EQ(Run({"work", "--at", "[::1]:80", "thing"}), 0) << err_.str();
  EXPECT_EQ(flags_.text("at"), "[::1]:80");
}

TEST_F(CliTest, RangesReadAsTheyWereWritten) {
  EXPECT_EQ(Run({"work", "--share=2"}), kExitUsage);
  EXPECT_EQ(err_.str(), "error: --share: 2 is out of range; allowed: 0 .. 1\n");
}

TEST_F(CliTest, UnknownCommands) {
  EXPECT_EQ(Run({"wrok"}), kExitUsage);
  EXPECT_EQ(err_.str(), "error: unknown command \"wrok\"; did you mean baton work?\n");
  EXPECT_EQ(Run({"zzzzzzz"}), kExitUsage);
  EXPECT_THAT(err_.str(), HasSubstr("baton --help lists the commands"));
  EXPECT_EQ(Run({}), kExitUsage);
  EXPECT_THAT(err_.str(), HasSubstr("Usage: baton COMMAND"));
}

TEST_F(CliTest, ConfigurationProblemsStopOrdinaryCommands) {
  EXPECT_EQ(Run({"work", "--router.max_queue=0", "--log-level=loud"}), kExitUsage);
  EXPECT_THAT(
      err_.str(),
      HasSubstr("error: the configuration has 2 problems:\n  --router.max_queue: 0 is out of"));
  EXPECT_EQ(runs_, 0);
  EXPECT_EQ(Run({"inspect", "--router.max_queue=0", "--log-level=loud"}), 0);
  EXPECT_EQ(problems_.size(), 2u);
}

TEST_F(CliTest, EnvironmentIsForCommandsWithConfiguration) {
  environment_ = {{"BATON_ROUTER_MAX_QUEUE", "zero"}};
  EXPECT_EQ(Run({"work"}), kExitUsage);
  EXPECT_EQ(Run({"plain"}), 1);
  EXPECT_EQ(Run({"plain", "--router.max_queue=1"}), kExitUsage);
}

TEST_F(CliTest, PrintConfigShowsOriginsAndRunsNothing) {
  environment_ = {{"BATON_LOG_LEVEL", "debug"}};
  EXPECT_EQ(Run({"work", "--print-config", "--router.max_queue=9"}), 0);
  EXPECT_THAT(out_.str(), HasSubstr("  max_queue: 9"));
  EXPECT_THAT(out_.str(), HasSubstr("# --router.max_queue\n"));
  EXPECT_THAT(out_.str(), HasSubstr("# BATON_LOG_LEVEL\n"));
  EXPECT_EQ(runs_, 0);
}

TEST_F(CliTest, HelpFitsTheScreenAndNamesEverything) {
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_THAT(out_.str(), HasSubstr("  work      does work\n"));
  EXPECT_EQ(Run({"work", "--help"}), 0);
  const std::string help = out_.str();
  EXPECT_THAT(help, HasSubstr("  --count NUMBER\n      How many. (1 .. 9 pieces; default: 3)\n"));
  EXPECT_THAT(help, HasSubstr("  --router.max_queue REQUESTS\n"));
  EXPECT_THAT(help, HasSubstr("  --server.http_address, --http-port ADDRESS\n"));
  EXPECT_THAT(help, Not(HasSubstr("--server.grpc_address")));
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  EXPECT_THAT(err_.str(), IsEmpty());
}

TEST_F(CliTest, VersionNamesTheRevisionAndTheBackends) {
  EXPECT_EQ(Run({"--version"}), 0);
  EXPECT_THAT(out_.str(),
              ::testing::MatchesRegex("baton [0-9.]+ \\([0-9a-z]+\\)\nbackends: cpu, another\n"));
}

TEST_F(CliTest, ModelDirectoryNamesWhatIsMissing) {
  Config config;
  config.mutable_model()->set_path("/nonexistent");
  EXPECT_THAT(std::string(ModelDirectory(config).status().message()),
              HasSubstr("model.path: no checkpoint in /nonexistent"));
  EXPECT_EQ(ModelName(config, "/models/deepseek-v3/"), "deepseek-v3");
  config.mutable_model()->set_name("mine");
  EXPECT_EQ(ModelName(config, "/models/deepseek-v3"), "mine");
}

}  // namespace
}  // namespace baton::server
