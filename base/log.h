#ifndef BATON_BASE_LOG_H_
#define BATON_BASE_LOG_H_

// Log lines for operators: a level, a message and fields. A Log is a cheap value that is passed
// along; copies share one sink, and With() makes one that adds fields to each line. A
// default-constructed Log is silent. Any thread may log; lines are written whole. Prompts and
// outputs are never logged.
//
//   const Log log = root.With({{"component", "decode"}});
//   log.Warning("hand-off refused", {{"request", key.request.value()}, {"cause", "checksum"}});
//
// text:  2025-01-31T12:00:00.123Z W hand-off refused component=decode request=7 cause=checksum
// json:  {"time":"...","level":"warning","message":"hand-off refused","component":"decode",...}

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace baton {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError, kOff };
enum class LogFormat : uint8_t { kText, kJson };

struct LogField {
  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(v) {}
  LogField(std::string_view k, bool v) : key(k), value(v ? "true" : "false"), bare(true) {}
  LogField(std::string_view k, double v);
  template <std::integral Int>
  LogField(std::string_view k, Int v) : key(k), value(std::to_string(v)), bare(true) {}

  std::string key;
  std::string value;
  bool bare = false;  // a number or boolean: JSON shows it without quotes
};
using LogFields = std::vector<LogField>;

struct LogOptions {
  LogLevel level = LogLevel::kInfo;  // lines below it are dropped
  LogFormat format = LogFormat::kText;
  // Takes each line, without its newline, one call at a time. Empty: standard error.
  std::function<void(std::string_view line)> sink;
};

class Log {
 public:
  Log() = default;
  explicit Log(LogOptions options);

  // A log whose lines carry `fields` after those of this one.
  Log With(const LogFields& fields) const;

  bool Enabled(LogLevel level) const;
  void Debug(std::string_view message, const LogFields& fields = {}) const {
    Write(LogLevel::kDebug, message, fields);
  }
  void Info(std::string_view message, const LogFields& fields = {}) const {
    Write(LogLevel::kInfo, message, fields);
  }
  void Warning(std::string_view message, const LogFields& fields = {}) const {
    Write(LogLevel::kWarning, message, fields);
  }
  void Error(std::string_view message, const LogFields& fields = {}) const {
    Write(LogLevel::kError, message, fields);
  }

 private:
  struct Core;
  void Write(LogLevel level, std::string_view message, const LogFields& fields) const;

  std::shared_ptr<Core> core_;
  LogFields bound_;
};

}  // namespace baton

#endif  // BATON_BASE_LOG_H_
