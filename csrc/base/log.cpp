#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <mutex>
#include <set>

#include "base/error.h"
#include "base/log_once.h"
#include "base/strings.h"

namespace mgm::log {
namespace {

struct Sinks {
  std::shared_ptr<spdlog::sinks::stderr_color_sink_mt> console =
      std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  spdlog::logger logger{"mgm", console};
  std::mutex guard;
  std::set<std::string> given_once;  // under the guard
  Sinks() {
    logger.set_level(spdlog::level::debug);
    console->set_level(spdlog::level::info);
    console->set_pattern("%^%H:%M:%S %L%$ %v");
    logger.flush_on(spdlog::level::info);  // kill -9 loses no line
  }
};

Sinks& sinks() {
  static Sinks instance;
  return instance;
}

}  // namespace

void debug(std::string_view message) { sinks().logger.debug("{}", printable(message)); }
void info(std::string_view message) { sinks().logger.info("{}", printable(message)); }
void warn(std::string_view message) { sinks().logger.warn("{}", printable(message)); }
void error(std::string_view message) { sinks().logger.error("{}", printable(message)); }

void warn_once(const std::string& message) {
  {
    const std::lock_guard lock(sinks().guard);
    if (!sinks().given_once.insert(message).second) return;
  }
  warn(message);
}

void add_file(const std::string& path) {
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false);
    file->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    sinks().logger.sinks().push_back(std::move(file));
  } catch (const spdlog::spdlog_ex& e) {
    throw InternalError("cannot open the log file ", path, ": ", e.what());
  }
}

void set_verbose(bool on) {
  sinks().console->set_level(on ? spdlog::level::debug : spdlog::level::info);
}
void set_quiet(bool on) {
  sinks().console->set_level(on ? spdlog::level::warn : spdlog::level::info);
}
void mute_console() { sinks().console->set_level(spdlog::level::off); }
void flush() { sinks().logger.flush(); }

}  // namespace mgm::log
