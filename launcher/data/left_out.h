#pragma once
// LeftOut: what of the data is not taken, and why.
//
// Thread safety: functions without state.
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace fusedbun::data {

/// One kind of it.
struct LeftOut {
  std::string what;  ///< in the plural: "empty documents"
  int64_t count = 0;
  std::string first;  ///< where the first is: a file, or file:line
};

/// "empty documents: 3, the first a.jsonl:7"
std::string text_of(const LeftOut& left_out);

void to_json(nlohmann::ordered_json& json, const LeftOut& left_out);
void from_json(const nlohmann::ordered_json& json, LeftOut& left_out);

}  // namespace fusedbun::data
