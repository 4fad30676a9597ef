#include "fusedbun/dist/control/change_records.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/hexadecimal.h"

namespace fusedbun::control {
namespace {

using Json = nlohmann::ordered_json;
using google::protobuf::util::TimeUtil;

constexpr int kVersion = 2;

std::string now_text() {
  return TimeUtil::ToString(TimeUtil::GetCurrentTime());
}

const plan::FieldSpec& spec_of(plan::Field field) {
  const auto specs = plan::field_specs();
  const auto spec = std::ranges::find(specs, field, &plan::FieldSpec::field);
  FUSEDBUN_ASSERT(spec != specs.end(), "every field has a row in the table");
  return *spec;
}

Json number(plan::Field field, double value) {
  return spec_of(field).is_bool ? Json(value != 0) : Json(value);
}

/// What `field` was in `group`, or in the job.
Json previous_value(const plan::Settings& settings, plan::Field field, size_t group) {
  switch (field) {
    case plan::Field::learning_rate:
    case plan::Field::unpin_learning_rate:
      return settings.lr_pins[group] ? Json(*settings.lr_pins[group]) : Json(nullptr);
    case plan::Field::eps:
      return settings.groups[group].eps;
    case plan::Field::beta_decay:
      return settings.groups[group].beta_decay;
    case plan::Field::weight_decay:
      return settings.groups[group].Lambda;
    case plan::Field::momentum_beta:
      return settings.groups[group].momentum_beta;
    case plan::Field::centralize:
      return settings.groups[group].centralize;
    case plan::Field::use_rms:
      return settings.groups[group].use_rms;
    case plan::Field::max_grad_norm:
      return settings.max_grad_norm;
    case plan::Field::lr_scale:
      return settings.lr_scale;
    case plan::Field::cancel:
      break;
  }
  FUSEDBUN_ASSERT(false, "every field has a previous value");
}

Json previous_values(const plan::AcceptedChange& change,
                     std::span<const plan::LedgerGroup> groups) {
  Json previous = Json::array();
  std::set<std::pair<size_t, plan::Field>> told;
  for (const plan::ChangeEntry& entry : change.entries) {
    if (entry.field == plan::Field::cancel) continue;
    if (!spec_of(entry.field).per_group) {
      previous.push_back({{"group", "*"},
                          {"field", plan::name_of(entry.field)},
                          {"value", previous_value(change.previous, entry.field, 0)}});
      continue;
    }
    const size_t first = entry.group < 0 ? 0 : static_cast<size_t>(entry.group);
    const size_t last = entry.group < 0 ? groups.size() : first + 1;
    const bool is_pin = entry.field == plan::Field::unpin_learning_rate;
    const plan::Field field = is_pin ? plan::Field::learning_rate : entry.field;
    for (size_t group = first; group < last; ++group) {
      if (!told.emplace(group, field).second) continue;  // "*" and then the group itself
      previous.push_back({{"group", groups[group].name},
                          {"field", plan::name_of(field)},
                          {"value", previous_value(change.previous, field, group)}});
    }
  }
  return previous;
}

template <class Value>
Json or_null(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

uint64_t read_chain_hash(const std::string& text) {
  const auto value = plan::read_hexadecimal(text);
  if (!value) throw DataError("'" + text + "' is no chain hash");
  return *value;
}

std::optional<int64_t> read_optional(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.get<int64_t>());
}

LoggedChange read_change(const Json& record) {
  LoggedChange change;
  change.revision = record.at("revision").get<int64_t>();
  change.effective_step = record.at("effective_step").get<int64_t>();
  change.chain_hash = read_chain_hash(record.at("chain_hash").get<std::string>());
  plan::ChangeRequest& request = change.request;
  request.apply_at_step = read_optional(record.at("apply_at_step"));
  request.cancels = read_optional(record.at("cancels"));
  request.actor = record.at("actor").get<std::string>();
  request.reason = record.at("reason").get<std::string>();
  request.request_id = record.at("request_id").get<std::string>();
  if (record.at("unconditional").get<bool>()) request.etag = "*";
  google::protobuf::Timestamp time;
  if (!TimeUtil::FromString(record.at("time").get<std::string>(), &time))
    throw DataError("its time is none");
  request.create_time_us = TimeUtil::TimestampToMicroseconds(time);
  for (const Json& value : record.at("values")) {
    const auto name = value.at("field").get<std::string>();
    const auto spec = plan::find_field(name);
    if (!spec) throw DataError("there is no hyperparameter '" + name + "'");
    const Json& number = value.at("value");
    request.patches.push_back(
        {.group = value.at("group").get<std::string>(),
         .field = spec->field,
         .value = number.is_boolean() ? double(number.get<bool>()) : number.get<double>()});
  }
  return change;
}

}  // namespace

std::string run_record(const std::string& run_id, int64_t pid) {
  return dump({{"record", "run"},
               {"time", now_text()},
               {"version", kVersion},
               {"run_id", run_id},
               {"pid", pid}});
}

std::string change_record(const plan::AcceptedChange& change,
                          std::span<const plan::LedgerGroup> groups) {
  Json values = Json::array();
  for (const plan::ValuePatch& patch : change.request.patches) {
    values.push_back({{"group", patch.group},
                      {"field", plan::name_of(patch.field)},
                      {"value", number(patch.field, patch.value)}});
  }
  const auto time = TimeUtil::MicrosecondsToTimestamp(change.request.create_time_us);
  return dump({{"record", "change"},
               {"time", TimeUtil::ToString(time)},
               {"revision", change.revision},
               {"effective_step", change.effective_step},
               {"apply_at_step", or_null(change.request.apply_at_step)},
               {"cancels", or_null(change.request.cancels)},
               {"actor", change.request.actor},
               {"reason", change.request.reason},
               {"request_id", change.request.request_id},
               {"unconditional", change.unconditional},
               {"values", std::move(values)},
               {"previous", previous_values(change, groups)},
               {"chain_hash", plan::hexadecimal(change.chain_hash)}});
}

std::string end_record(int64_t step, std::string_view state, bool again,
                       std::span<const int64_t> rejected) {
  return dump({{"record", "end"},
               {"time", now_text()},
               {"step", step},
               {"state", state},
               {"again", again},
               {"rejected", Json(std::vector<int64_t>(rejected.begin(), rejected.end()))}});
}

LoggedRun read_records(std::span<const std::string> records) {
  LoggedRun run;
  std::vector<LoggedChange>& changes = run.changes;
  for (size_t i = 0; i < records.size(); ++i) {
    try {
      const Json record = Json::parse(records[i]);
      const auto kind = record.at("record").get<std::string>();
      if (kind == "run") {
        const int version = record.at("version").get<int>();
        if (version != kVersion) throw DataError("it is of version " + std::to_string(version));
        if (std::exchange(run.ended_for_good, false)) changes.clear();
      } else if (kind == "change") {
        changes.push_back(read_change(record));
        if (changes.back().revision != static_cast<int64_t>(changes.size()))
          throw DataError("its revision does not follow the one before");
      } else if (kind == "end") {
        run.ended_for_good = !record.at("again").get<bool>();
      } else {
        throw DataError("there is no such kind of record");
      }
    } catch (const nlohmann::json::exception& error) {
      throw DataError("record " + std::to_string(i + 1) + " cannot be read: " + error.what());
    } catch (const DataError& error) {
      throw DataError("record " + std::to_string(i + 1) + ": " + error.what());
    }
  }
  return run;
}

}  // namespace fusedbun::control
