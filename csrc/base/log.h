// The log sink: console (stderr) and, once a run folder exists, a file per rank. spdlog lives in
// log.cpp only, because torch's include folder shadows the fmt it is built with.
#pragma once

#include <string>
#include <string_view>

namespace mgm::log {

void debug(std::string_view message);
void info(std::string_view message);
void warn(std::string_view message);
void error(std::string_view message);

// Also append everything to `path` from now on; throws Error(kInternal) if it cannot be opened.
void add_file(const std::string& path);
void set_verbose(bool on);  // debug lines too
void set_quiet(bool on);    // console shows warnings and errors only; files still get everything
void mute_console();        // for good: files alone from now on
void flush();

}  // namespace mgm::log
