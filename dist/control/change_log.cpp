#include "fusedbun/dist/control/change_log.h"

#include <fcntl.h>
#include <google/protobuf/util/time_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

using Json = nlohmann::ordered_json;
using google::protobuf::util::TimeUtil;

constexpr int kVersion = 1;

std::string now_text() {
  return TimeUtil::ToString(TimeUtil::GetCurrentTime());
}

Json number(plan::Field field, double value) {
  for (const plan::FieldSpec& spec : plan::field_specs()) {
    if (spec.field == field && spec.is_bool) return value != 0;
  }
  return value;
}

/// What `field` was in `group` (-1: of the job).
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
  }
  FUSEDBUN_ASSERT(false, "every field has a previous value");
}

bool is_of_job(plan::Field field) {
  return field == plan::Field::max_grad_norm || field == plan::Field::lr_scale;
}

Json previous_values(const plan::AcceptedChange& change,
                     std::span<const plan::LedgerGroup> groups) {
  Json previous = Json::array();
  std::set<std::pair<size_t, plan::Field>> told;
  for (const plan::ChangeEntry& entry : change.entries) {
    if (is_of_job(entry.field)) {
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

std::string dump(const Json& json) {
  // Control characters are escaped by JSON itself; what is not UTF-8 is replaced.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

ChangeLog::ChangeLog(const std::filesystem::path& run_dir, const std::string& run_id) {
  const std::filesystem::path path = run_dir / "changes.log";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  FUSEDBUN_REQUIRE(fd_ >= 0, IoError, "cannot open " + path.string() + ": " + std::strerror(errno));
  try {
    char last = '\n';
    const off_t size = ::lseek(fd_, 0, SEEK_END);
    if (size > 0 && ::pread(fd_, &last, 1, size - 1) == 1 && last != '\n')
      write_line("");  // ends a torn line
    write_line(dump({{"record", "run"},
                     {"time", now_text()},
                     {"version", kVersion},
                     {"run_id", run_id},
                     {"pid", ::getpid()}}));
    const int folder = ::open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
      ::fsync(folder);  // the file's name is on disk too
      ::close(folder);
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

ChangeLog::~ChangeLog() {
  ::close(fd_);
}

void ChangeLog::append(const plan::AcceptedChange& change,
                       std::span<const plan::LedgerGroup> groups) {
  Json values = Json::array();
  for (const plan::ValuePatch& patch : change.request.patches) {
    values.push_back({{"group", patch.group},
                      {"field", plan::name_of(patch.field)},
                      {"value", number(patch.field, patch.value)}});
  }
  const auto time = TimeUtil::MicrosecondsToTimestamp(change.request.create_time_us);
  write_line(dump({{"record", "change"},
                   {"time", TimeUtil::ToString(time)},
                   {"revision", change.revision},
                   {"effective_step", change.effective_step},
                   {"actor", change.request.actor},
                   {"reason", change.request.reason},
                   {"request_id", change.request.request_id},
                   {"unconditional", change.unconditional},
                   {"values", std::move(values)},
                   {"previous", previous_values(change, groups)},
                   {"chain_hash", hex(change.chain_hash)}}));
}

void ChangeLog::append_end(int64_t step, std::string_view state,
                           std::span<const int64_t> rejected) {
  write_line(dump({{"record", "end"},
                   {"time", now_text()},
                   {"step", step},
                   {"state", state},
                   {"rejected", Json(std::vector<int64_t>(rejected.begin(), rejected.end()))}}));
}

void ChangeLog::write_line(std::string line) {
  line += '\n';
  const off_t before = ::lseek(fd_, 0, SEEK_END);
  const ssize_t written = ::write(fd_, line.data(), line.size());
  if (written == static_cast<ssize_t>(line.size()) && ::fdatasync(fd_) == 0) return;
  const int error = written < 0 || written == static_cast<ssize_t>(line.size()) ? errno : ENOSPC;
  [[maybe_unused]] const int taken_back = ::ftruncate(fd_, before);
  throw IoError(std::string("cannot write changes.log: ") + std::strerror(error));
}

}  // namespace fusedbun::control
