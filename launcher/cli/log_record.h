#pragma once
// Log records: what a process says as JSON lines, for collectors of logs, in place of sentences (--log-json):
//   {"time":"2026-11-28T09:00:00.123Z","level":"info","rank":0,"message":"step 12/24  loss 2.81 ...","step":11,"loss":2.81}
// What libraries and the launcher print stays text.
//
// Thread safety: speak_json() before other threads speak; the rest from any thread.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fusedbun::launcher {

/// From now on this process, which is `rank` of its job, speaks JSON.
void speak_json(int rank);
bool speaks_json();

using LogField = std::pair<std::string_view, std::variant<int64_t, double, std::string>>;
/// One line, its end included. NaN and inf become null, bytes that are no UTF-8 are replaced.
std::string log_record(std::string_view level, std::string_view message,
                       const std::vector<LogField>& fields = {});
/// Does a line begin as log_record()'s do? It says by itself which rank it is of.
bool is_log_record(std::string_view line);

/// What went wrong, as this process speaks: "fusedbun: SENTENCE\n", or a record of level error.
std::string error_line(std::string_view sentence, const std::vector<LogField>& fields = {});

}  // namespace fusedbun::launcher
