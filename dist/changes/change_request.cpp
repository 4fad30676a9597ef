#include "fusedbun/dist/changes/change_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

std::string text_of(double value) {
  char buffer[32];
  const auto end = std::to_chars(std::begin(buffer), std::end(buffer), value).ptr;
  return std::string(buffer, end);
}

std::string range_text(const FieldSpec& spec) {
  if (spec.is_bool) return spec.min == spec.max ? "true" : "true or false";
  const bool open_end = spec.max == std::numeric_limits<double>::max();
  return (spec.min_exclusive ? "(" : "[") + text_of(spec.min) + ", " +
         (open_end ? "inf)" : text_of(spec.max) + (spec.max_exclusive ? ")" : "]"));
}

std::string names_of(std::span<const LedgerGroup> groups) {
  constexpr size_t kNamed = 8;  // enough to recognise one's own; a message is not a list
  std::string names;
  for (const LedgerGroup& group : groups.first(std::min(groups.size(), kNamed))) {
    names += (names.empty() ? "" : ", ") + group.name;
  }
  return groups.size() > kNamed ? names + ", ..." : names;
}

std::optional<Refusal> check_value(const ValuePatch& patch, const FieldSpec& spec) {
  if (allows(spec, patch.value)) return std::nullopt;  // NaN and inf are in no range
  return Refusal{
      RefusalKind::invalid_argument,
      std::isfinite(patch.value) ? "OUT_OF_SPEC" : "NOT_FINITE",
      std::string(spec.name) + " = " + text_of(patch.value) + " is not in " + range_text(spec),
      {{"field", std::string(spec.name)}, {"range", range_text(spec)}}};
}

/// -1 for "*"; a Refusal if there is no such group or the field is not a group's.
std::variant<int32_t, Refusal> find_group(const ValuePatch& patch, const FieldSpec& spec,
                                          std::span<const LedgerGroup> groups) {
  if (patch.group == "*") return int32_t{-1};
  const auto found = std::ranges::find(groups, patch.group, &LedgerGroup::name);
  if (found == groups.end()) {
    return Refusal{RefusalKind::not_found,
                   "UNKNOWN_GROUP",
                   "there is no group '" + echo(patch.group) + "'; this job has " +
                       names_of(groups) + ", and \"*\" means all",
                   {{"group", echo(patch.group)}}};
  }
  if (!spec.per_group) {
    return Refusal{RefusalKind::invalid_argument,
                   "JOB_FIELD_IN_GROUP",
                   std::string(spec.name) + " belongs to the job, so only group \"*\" may set it",
                   {{"field", std::string(spec.name)}}};
  }
  return static_cast<int32_t>(found - groups.begin());
}

/// As entries have them. Weight decay for all groups is for those that are not exempt from it, unless all are.
std::vector<int32_t> groups_meant(int32_t group, Field field, std::span<const LedgerGroup> groups) {
  const auto exempt = std::ranges::count(groups, true, &LedgerGroup::is_exempt_from_decay);
  if (group >= 0 || field != Field::weight_decay || exempt == 0 || exempt == std::ssize(groups))
    return {group};
  std::vector<int32_t> meant;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (!groups[g].is_exempt_from_decay) meant.push_back(static_cast<int32_t>(g));
  }
  return meant;
}

/// A group that was made without momentum stores none, and cannot get any.
std::optional<Refusal> check_momentum(int32_t group, std::span<const LedgerGroup> groups) {
  for (size_t i = 0; i < groups.size(); ++i) {
    const bool meant = group < 0 || static_cast<size_t>(group) == i;
    if (meant && groups[i].options.momentum_beta == 0) {
      return Refusal{RefusalKind::failed_precondition,
                     "MOMENTUM_FIXED",
                     "group " + groups[i].name +
                         " was made without momentum, which cannot change while the job runs",
                     {{"group", groups[i].name}}};
    }
  }
  return std::nullopt;
}

/// max_grad_norm = 0 asks for nothing that the job does not do already.
std::optional<Refusal> check_clipping(const ValuePatch& patch,
                                      const JobCapabilities& capabilities) {
  if (patch.field != Field::max_grad_norm || patch.value == 0 || capabilities.clips_gradients)
    return std::nullopt;
  return Refusal{
      RefusalKind::failed_precondition,
      "CLIPPING_FIXED",
      "this job updates parameters during backward (step_in_backward), before the norm of "
      "the gradient is known, so max_grad_norm stays 0: start it without "
      "step_in_backward to clip, or with clip_by_previous_norm",
      {{"field", std::string(name_of(patch.field))}}};
}

}  // namespace

Refusal invalid(std::string reason, std::string message) {
  return {RefusalKind::invalid_argument, std::move(reason), std::move(message), {}};
}

std::string echo(std::string_view text) {
  constexpr size_t kEchoBytesMax = 100;
  if (text.size() <= kEchoBytesMax) return std::string(text);
  size_t end = kEchoBytesMax;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // not within a character
  return std::string(text.substr(0, end)) + "...";
}

std::optional<Refusal> check_size(const ChangeRequest& request) {
  if (request.patches.size() > kPatchesMax) {
    return invalid("TOO_MANY_VALUES", "one change sets at most " + std::to_string(kPatchesMax) +
                                          " values, this one " +
                                          std::to_string(request.patches.size()));
  }
  if (request.reason.size() > kReasonBytesMax) {
    return invalid("REASON_TOO_LONG",
                   "the reason has more than " + std::to_string(kReasonBytesMax) + " bytes");
  }
  if (request.request_id.size() > kRequestIdBytesMax) {
    return invalid("REQUEST_ID_TOO_LONG",
                   "request_id has more than " + std::to_string(kRequestIdBytesMax) + " bytes");
  }
  return std::nullopt;
}

std::variant<std::vector<ChangeEntry>, Refusal> resolve(const ChangeRequest& request,
                                                        std::span<const LedgerGroup> groups,
                                                        const JobCapabilities& capabilities) {
  if (auto refusal = check_size(request)) return *refusal;
  if (request.patches.empty()) return invalid("EMPTY_CHANGE", "the change sets no value");
  std::vector<ChangeEntry> entries;
  std::set<std::pair<int32_t, Field>> seen;
  for (const ValuePatch& patch : request.patches) {
    const FieldSpec& spec = spec_of(patch.field);
    const auto group = find_group(patch, spec, groups);
    if (const auto* refusal = std::get_if<Refusal>(&group)) return *refusal;
    if (auto refusal = check_value(patch, spec)) return *refusal;
    const int32_t index = std::get<int32_t>(group);
    if (patch.field == Field::momentum_beta) {
      if (auto refusal = check_momentum(index, groups)) return *refusal;
    }
    if (auto refusal = check_clipping(patch, capabilities)) return *refusal;
    if (!seen.emplace(index, slot_of(patch.field)).second) {
      return Refusal{RefusalKind::invalid_argument,
                     "FIELD_SET_TWICE",
                     "the change sets " + std::string(name_of(slot_of(patch.field))) +
                         " of group '" + patch.group + "' twice",
                     {{"field", std::string(spec.name)}, {"group", patch.group}}};
    }
    for (const int32_t meant : groups_meant(index, patch.field, groups))
      entries.push_back({.field = patch.field, .group = meant, .value = patch.value});
  }
  return entries;
}

}  // namespace fusedbun::changes
