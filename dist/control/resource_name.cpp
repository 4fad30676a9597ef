#include "fusedbun/dist/control/resource_name.h"

#include <charconv>

namespace fusedbun::control {
namespace {

constexpr std::string_view kJobs = "jobs/";

std::string quoted(std::string_view text) {
  return "'" + changes::echo(text) + "'";
}

/// The number in "{collection}{number}".
std::optional<int64_t> number_after(std::string_view collection, std::string_view within) {
  if (!within.starts_with(collection)) return std::nullopt;
  const std::string_view digits = within.substr(collection.size());
  int64_t number = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (read.ec != std::errc{} || read.ptr != digits.data() + digits.size()) return std::nullopt;
  return number;
}

}  // namespace

std::string job_name(std::string_view run_id) {
  std::string name(kJobs);
  for (const char c : run_id) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-';
    name += plain ? c : '-';
  }
  return name;
}

std::variant<std::string_view, changes::Refusal> strip_job_prefix(std::string_view name,
                                                                  std::string_view job) {
  for (const std::string_view known : {job, std::string_view("jobs/-")}) {
    if (name == known) return std::string_view{};
    if (name.starts_with(known) && name[known.size()] == '/') return name.substr(known.size() + 1);
  }
  return changes::Refusal{
      changes::RefusalKind::not_found,
      "UNKNOWN_JOB",
      quoted(name) + " is not of the job served here, " + std::string(job) + " or \"jobs/-\"",
      {{"job", std::string(job)}}};
}

std::variant<int64_t, changes::Refusal> change_revision(std::string_view within, int64_t newest) {
  const int64_t revision = number_after("changes/", within).value_or(0);
  if (revision >= 1 && revision <= newest) return revision;
  return changes::Refusal{changes::RefusalKind::not_found,
                          "UNKNOWN_CHANGE",
                          "there is no " + quoted(within) + "; the newest change is " +
                              (newest > 0 ? "changes/" + std::to_string(newest) : "none yet"),
                          {}};
}

std::optional<int64_t> checkpoint_step(std::string_view within) {
  return number_after("checkpoints/", within);
}

changes::Refusal unknown_checkpoint(std::string_view within) {
  return {changes::RefusalKind::not_found,
          "UNKNOWN_CHECKPOINT",
          "there is no " + quoted(within) + "; ListCheckpoints names those there are",
          {}};
}

}  // namespace fusedbun::control
