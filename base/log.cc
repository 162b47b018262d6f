#include "base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <charconv>
#include <cmath>
#include <ctime>
#include <mutex>
#include <nlohmann/json.hpp>

namespace baton {
namespace {

class FunctionSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FunctionSink(std::function<void(std::string_view)> function)
      : function_(std::move(function)) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    function_(std::string_view(message.payload.data(), message.payload.size()));
  }
  void flush_() override {}

 private:
  std::function<void(std::string_view)> function_;
};

struct LevelNames {
  std::string_view word;
  char letter;
};

LevelNames NamesOf(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return {"debug", 'D'};
    case LogLevel::kInfo:
      return {"info", 'I'};
    case LogLevel::kWarning:
      return {"warning", 'W'};
    case LogLevel::kError:
    case LogLevel::kOff:
      break;
  }
  return {"error", 'E'};
}

// Wall time in UTC with milliseconds: for people, never for decisions.
std::string Timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  char text[40];
  const size_t length = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  snprintf(text + length, sizeof text - length, ".%03dZ",
           static_cast<int>(now.tv_nsec / 1'000'000));
  return text;
}

std::string Quoted(std::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Control characters would let one message look like two lines.
bool NeedsQuotes(std::string_view value) {
  for (const unsigned char c : value) {
    if (c <= ' ' || c == '"' || c == '=' || c == 0x7F) return true;
  }
  return value.empty();
}

bool HasControls(std::string_view text) {
  for (const unsigned char c : text) {
    if (c < ' ' || c == 0x7F) return true;
  }
  return false;
}

void AppendText(std::string& line, const LogFields& fields) {
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    line += NeedsQuotes(field.value) ? Quoted(field.value) : field.value;
  }
}

void AppendJson(std::string& line, const LogFields& fields) {
  for (const LogField& field : fields) {
    line += ',' + Quoted(field.key) + ':';
    line += field.bare ? field.value : Quoted(field.value);
  }
}

}  // namespace

LogField::LogField(std::string_view k, double v) : key(k), bare(std::isfinite(v)) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, v).ptr;
  value.assign(text, end);
}

struct Log::Core {
  LogLevel level;
  LogFormat format;
  spdlog::logger logger;
};

Log::Log(LogOptions options) {
  spdlog::sink_ptr sink;
  if (options.sink) {
    sink = std::make_shared<FunctionSink>(std::move(options.sink));
  } else {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  }
  core_ = std::make_shared<Core>(
      Core{options.level, options.format, spdlog::logger("baton", std::move(sink))});
  core_->logger.set_level(spdlog::level::trace);  // Enabled() has decided by then
  core_->logger.set_pattern("%v");
  core_->logger.flush_on(spdlog::level::trace);
}

Log Log::With(const LogFields& fields) const {
  Log child = *this;
  child.bound_.insert(child.bound_.end(), fields.begin(), fields.end());
  return child;
}

bool Log::Enabled(LogLevel level) const {
  return core_ != nullptr && level >= core_->level && level != LogLevel::kOff;
}

void Log::Write(LogLevel level, std::string_view message, const LogFields& fields) const {
  if (!Enabled(level)) return;
  const LevelNames names = NamesOf(level);
  std::string line;
  if (core_->format == LogFormat::kJson) {
    line = "{\"time\":\"" + Timestamp() + "\",\"level\":\"" + std::string(names.word) +
           "\",\"message\":" + Quoted(message);
    AppendJson(line, bound_);
    AppendJson(line, fields);
    line += '}';
  } else {
    line = Timestamp() + ' ' + names.letter + ' ';
    line += HasControls(message) ? Quoted(message) : std::string(message);
    AppendText(line, bound_);
    AppendText(line, fields);
  }
  core_->logger.log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace baton
