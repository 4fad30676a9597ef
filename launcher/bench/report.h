#pragma once
// What a measurement leaves: JSON with `rows`, or the same rows as a table.
//
// Thread safety: functions without state.
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fusedbun/launcher/bench/quartiles.h"

namespace fusedbun::bench {

using Json = nlohmann::ordered_json;

/// {"date", "machine": {"cores", "processor"}, "torch", "benchmark", "rows": []}.
Json empty_report(const std::string& benchmark);

/// Sets `name` (median) and `name`_low, `name`_high (quartiles) of a row.
void put(Json& row, const std::string& name, const Spread& spread);

/// A markdown table: one line per row, one column per key of the first row; quartiles are shown behind their median.
void print_table(const Json& report, std::ostream& out);

}  // namespace fusedbun::bench
