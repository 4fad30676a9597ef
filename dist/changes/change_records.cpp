#include "fusedbun/dist/changes/change_records.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/hex.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::changes {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 2;

std::string now_text() {
  return run_folder::utc_text_us(run_folder::utc_now_us());
}

Json number(Field field, double value) {
  return spec_of(field).is_bool ? Json(value != 0) : Json(value);
}

/// What `field` was in `group`, or in the job.
Json previous_value(const Settings& settings, Field field, size_t group) {
  if (slot_of(field) == Field::learning_rate)
    return settings.lr_pins[group] ? Json(*settings.lr_pins[group]) : Json(nullptr);
  if (field == Field::max_grad_norm) return settings.max_grad_norm;
  if (field == Field::lr_scale) return settings.lr_scale;
  return number(field, spec_of(field).get(settings.groups[group]));
}

Json previous_values(const AcceptedChange& change, std::span<const LedgerGroup> groups) {
  Json previous = Json::array();
  std::set<std::pair<size_t, Field>> told;
  for (const ChangeEntry& entry : change.entries) {
    if (entry.field == Field::cancel) continue;
    if (!spec_of(entry.field).per_group) {
      previous.push_back({{"group", "*"},
                          {"field", name_of(entry.field)},
                          {"value", previous_value(change.previous, entry.field, 0)}});
      continue;
    }
    const size_t first = entry.group < 0 ? 0 : static_cast<size_t>(entry.group);
    const size_t last = entry.group < 0 ? groups.size() : first + 1;
    const Field field = slot_of(entry.field);
    for (size_t group = first; group < last; ++group) {
      if (!told.emplace(group, field).second) continue;  // "*" and then the group itself
      previous.push_back({{"group", groups[group].name},
                          {"field", name_of(field)},
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
  const auto value = plan::from_hex(text);
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
  ChangeRequest& request = change.request;
  request.apply_at_step = read_optional(record.at("apply_at_step"));
  request.cancels = read_optional(record.at("cancels"));
  request.actor = record.at("actor").get<std::string>();
  request.reason = record.at("reason").get<std::string>();
  request.request_id = record.at("request_id").get<std::string>();
  if (record.at("unconditional").get<bool>()) request.etag = "*";
  const auto time = run_folder::read_utc_us(record.at("time").get<std::string>());
  if (!time) throw DataError("its time is invalid");
  request.create_time_us = *time;
  change.overrides = record.value("overrides", std::vector<int64_t>{});
  for (const Json& value : record.at("values")) {
    const auto name = value.at("field").get<std::string>();
    const auto spec = find_field(name);
    if (!spec) throw DataError("there is no hyperparameter '" + name + "'");
    const Json& number = value.at("value");
    request.patches.push_back(
        {.group = value.at("group").get<std::string>(),
         .field = spec->field,
         .value = number.is_boolean() ? double(number.get<bool>()) : number.get<double>()});
  }
  return change;
}

/// The revisions that one change takes back.
std::vector<int64_t> taken_back_by(const LoggedChange& change) {
  std::vector<int64_t> revisions = change.overrides;
  if (change.request.cancels) revisions.push_back(*change.request.cancels);
  for (const int64_t revision : revisions) {
    if (revision < 1 || revision >= change.revision)
      throw DataError("it cancels a change that is not before it");
  }
  return revisions;
}

RunEnd read_end(const Json& record) {
  return {.step = record.at("step").get<int64_t>(),
          .state = record.at("state").get<std::string>(),
          .again = record.at("again").get<bool>(),
          .diverged = record.value("diverged", false),
          .rejected = record.at("rejected").get<std::vector<int64_t>>()};
}

void read_record(const Json& record, LoggedRun& run) {
  std::vector<LoggedChange>& changes = run.changes;
  const auto kind = record.at("record").get<std::string>();
  if (kind == "run") {
    const int version = record.at("version").get<int>();
    if (version != kVersion) throw DataError("it is of version " + std::to_string(version));
    if (run.end && !run.end->again) changes.clear();
    run.end.reset();
    ++run.attempts;
  } else if (kind == "change") {
    changes.push_back(read_change(record));
    if (changes.back().revision != static_cast<int64_t>(changes.size()))
      throw DataError("its revision does not follow the one before");
    static_cast<void>(taken_back_by(changes.back()));
  } else if (kind == "void") {
    const auto after = record.at("after").get<int64_t>();
    if (after < 0 || after > static_cast<int64_t>(changes.size()))
      throw DataError("there is no change " + std::to_string(after));
    changes.resize(static_cast<size_t>(after));
  } else if (kind == "end") {
    run.end = read_end(record);
  } else {
    throw DataError("there is no such kind of record");
  }
}

}  // namespace

std::string run_record(const std::string& run_id, int64_t pid) {
  return dump({{"record", "run"},
               {"time", now_text()},
               {"version", kVersion},
               {"run_id", run_id},
               {"pid", pid}});
}

std::string change_record(const AcceptedChange& change, std::span<const LedgerGroup> groups) {
  Json values = Json::array();
  for (const ValuePatch& patch : change.request.patches) {
    values.push_back({{"group", patch.group},
                      {"field", name_of(patch.field)},
                      {"value", number(patch.field, patch.value)}});
  }
  return dump({{"record", "change"},
               {"time", run_folder::utc_text_us(change.request.create_time_us)},
               {"revision", change.revision},
               {"effective_step", change.effective_step},
               {"apply_at_step", or_null(change.request.apply_at_step)},
               {"cancels", or_null(change.request.cancels)},
               {"overrides", change.overrides},
               {"actor", change.request.actor},
               {"reason", change.request.reason},
               {"request_id", change.request.request_id},
               {"unconditional", change.unconditional},
               {"values", std::move(values)},
               {"previous", previous_values(change, groups)},
               {"chain_hash", plan::to_hex(change.chain_hash)}});
}

std::string void_record(int64_t after) {
  return dump({{"record", "void"}, {"time", now_text()}, {"after", after}});
}

std::string end_record(const RunEnd& end) {
  return dump({{"record", "end"},
               {"time", now_text()},
               {"step", end.step},
               {"state", end.state},
               {"again", end.again},
               {"diverged", end.diverged},
               {"rejected", end.rejected}});
}

LoggedRun read_records(std::span<const std::string> records) {
  LoggedRun run;
  for (size_t i = 0; i < records.size(); ++i) {
    try {
      read_record(Json::parse(records[i]), run);
    } catch (const nlohmann::json::exception& error) {
      throw DataError("record " + std::to_string(i + 1) + " cannot be read: " + error.what());
    } catch (const DataError& error) {
      throw DataError("record " + std::to_string(i + 1) + ": " + error.what());
    }
  }
  for (const LoggedChange& change : run.changes) {
    for (const int64_t revision : taken_back_by(change))
      run.changes[static_cast<size_t>(revision - 1)].cancelled = true;
  }
  return run;
}

}  // namespace fusedbun::changes
