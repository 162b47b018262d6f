#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/thread.h"

namespace baton {
namespace {

using ::testing::EndsWith;
using ::testing::SizeIs;

class LogTest : public ::testing::Test {
 protected:
  Log Make(LogLevel level, LogFormat format) {
    return Log({.level = level, .format = format, .sink = [this](std::string_view line) {
                  lines_.emplace_back(line);
                }});
  }
  std::vector<std::string> lines_;
};

TEST_F(LogTest, TextHasLevelMessageAndFields) {
  const Log log = Make(LogLevel::kInfo, LogFormat::kText).With({{"component", "decode"}});
  log.Warning("hand-off refused",
              {{"request", 7}, {"cause", "bad sum"}, {"share", 0.5}, {"final", true}});
  ASSERT_THAT(lines_, SizeIs(1));
  EXPECT_THAT(lines_[0], EndsWith("Z W hand-off refused component=decode request=7 cause=\"bad "
                                  "sum\" share=0.5 final=true"));
}

TEST_F(LogTest, JsonParsesWhateverIsLogged) {
  const Log log = Make(LogLevel::kDebug, LogFormat::kJson);
  log.Error("a \"quoted\"\nline \xff", {{"n", -3},
                                        {"big", std::numeric_limits<uint64_t>::max()},
                                        {"nan", std::numeric_limits<double>::quiet_NaN()},
                                        {"k\n", "\x01"}});
  ASSERT_THAT(lines_, SizeIs(1));
  const auto line = nlohmann::json::parse(lines_[0]);
  EXPECT_EQ(line["level"], "error");
  EXPECT_EQ(line["message"], "a \"quoted\"\nline \xef\xbf\xbd");
  EXPECT_EQ(line["n"], -3);
  EXPECT_EQ(line["big"], std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(line["nan"], "nan");
}

TEST_F(LogTest, LinesBelowTheLevelAreDropped) {
  const Log log = Make(LogLevel::kWarning, LogFormat::kText);
  log.Debug("no");
  log.Info("no");
  EXPECT_FALSE(log.Enabled(LogLevel::kInfo));
  EXPECT_THAT(lines_, SizeIs(0));
  log.Error("yes");
  EXPECT_THAT(lines_, SizeIs(1));
  Make(LogLevel::kOff, LogFormat::kText).Error("no");
  Log().Error("no");
  EXPECT_THAT(lines_, SizeIs(1));
}

TEST_F(LogTest, AMessageCannotForgeALine) {
  Make(LogLevel::kInfo, LogFormat::kText).Info("one\ntwo", {{"key", "three\nfour"}});
  ASSERT_THAT(lines_, SizeIs(1));
  EXPECT_EQ(lines_[0].find('\n'), std::string::npos);
}

TEST_F(LogTest, ThreadsWriteWholeLines) {
  const Log log = Make(LogLevel::kInfo, LogFormat::kText);
  {
    std::vector<Thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back("logger", [&log] {
        for (int i = 0; i < 100; ++i) log.Info("line");
      });
    }
  }
  EXPECT_THAT(lines_, SizeIs(400));
  EXPECT_THAT(lines_, ::testing::Each(EndsWith(" I line")));
}

}  // namespace
}  // namespace baton
