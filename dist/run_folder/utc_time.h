#pragma once
// Times as the files of a run folder spell them: RFC 3339, UTC.
//
// Thread safety: pure functions.
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>

namespace fusedbun::run_folder {

/// "2026-11-22T08:00:00Z"
std::string utc_text(std::time_t time);
/// "2026-11-22T08:00:00.000250Z", from microseconds since 1970.
std::string utc_text_us(int64_t time_us);
/// Reads both, with 0 to 9 digits after the point; nothing if it is no such time.
std::optional<int64_t> read_utc_us(const std::string& text);
/// The wall clock: microseconds since 1970.
int64_t utc_now_us();

}  // namespace fusedbun::run_folder
