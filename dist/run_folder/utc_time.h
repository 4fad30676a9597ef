#pragma once
// Times as the files of a run folder spell them: RFC 3339, UTC, whole seconds.
//
// Thread safety: pure functions.
#include <ctime>
#include <string>

namespace fusedbun::run_folder {

/// "2026-11-22T08:00:00Z"
inline std::string utc_text(std::time_t time) {
  std::tm parts{};
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", ::gmtime_r(&time, &parts));
  return text;
}

}  // namespace fusedbun::run_folder
