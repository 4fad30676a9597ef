#include "fusedbun/launcher/data/left_out.h"

#include <nlohmann/json.hpp>

namespace fusedbun::data {

std::string text_of(const LeftOut& left_out) {
  return left_out.what + ": " + std::to_string(left_out.count) + ", the first " + left_out.first;
}

void to_json(nlohmann::ordered_json& json, const LeftOut& left_out) {
  json = {{"what", left_out.what}, {"count", left_out.count}, {"first", left_out.first}};
}

void from_json(const nlohmann::ordered_json& json, LeftOut& left_out) {
  json.at("what").get_to(left_out.what);
  json.at("count").get_to(left_out.count);
  json.at("first").get_to(left_out.first);
}

}  // namespace fusedbun::data
