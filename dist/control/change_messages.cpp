#include "fusedbun/dist/control/change_messages.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <set>

namespace fusedbun::control {
namespace {

using google::protobuf::Message;
using google::protobuf::util::TimeUtil;

changes::Refusal unknown_field(const std::string& what) {
  return {
      changes::RefusalKind::invalid_argument,
      "UNKNOWN_FIELD",
      what +
          " is not known to this version: ListHyperparameterSpecs names the hyperparameters that "
          "may change while a job runs",
      {}};
}

bool has_unknown_fields(const Message& message) {
  return !message.GetReflection()->GetUnknownFields(message).empty();
}

/// The names in the mask, or all fields that are present.
std::variant<std::set<std::string>, changes::Refusal> selected_fields(const v1::GroupPatch& patch) {
  const Message& values = patch.values();
  const auto* reflection = values.GetReflection();
  std::set<std::string> names;
  if (patch.update_mask().paths().empty()) {
    std::vector<const google::protobuf::FieldDescriptor*> present;
    reflection->ListFields(values, &present);
    for (const auto* field : present) names.insert(field->name());
    return names;
  }
  for (const std::string& path : patch.update_mask().paths()) {
    const auto* field = values.GetDescriptor()->FindFieldByName(path);
    if (field == nullptr) return unknown_field("'" + changes::echo(path) + "' in update_mask");
    if (!reflection->HasField(values, field)) {
      return changes::Refusal{changes::RefusalKind::invalid_argument,
                              "MASK_WITHOUT_VALUE",
                              "update_mask names " + path + ", but values has none",
                              {{"field", path}}};
    }
    names.insert(path);
  }
  return names;
}

std::optional<changes::Refusal> read_patch(const v1::GroupPatch& patch,
                                           std::vector<changes::ValuePatch>& out) {
  const Message& values = patch.values();
  if (has_unknown_fields(patch) || has_unknown_fields(values))
    return unknown_field("a field of the request");
  auto selected = selected_fields(patch);
  if (auto* refusal = std::get_if<changes::Refusal>(&selected)) return *refusal;
  for (const std::string& name : std::get<std::set<std::string>>(selected)) {
    const auto* field = values.GetDescriptor()->FindFieldByName(name);
    const auto* reflection = values.GetReflection();
    const bool is_bool = field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL;
    out.push_back({.group = patch.group(),
                   .field = static_cast<changes::Field>(field->number()),
                   .value = is_bool ? double(reflection->GetBool(values, field))
                                    : reflection->GetDouble(values, field)});
  }
  return std::nullopt;
}

void set_value(changes::Field field, double value, v1::HyperparameterValues& values) {
  const auto* descriptor = values.GetDescriptor()->FindFieldByNumber(static_cast<int>(field));
  if (descriptor->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
    values.GetReflection()->SetBool(&values, descriptor, value != 0);
  } else {
    values.GetReflection()->SetDouble(&values, descriptor, value);
  }
}

}  // namespace

bool has_control_characters(std::string_view utf8) {
  // C1 controls are C2 80 to C2 9F; E2 80 and E2 81 begin line separators, marks and isolates of direction.
  for (size_t i = 0; i < utf8.size(); ++i) {
    const auto byte = [&](size_t offset) {
      return i + offset < utf8.size() ? static_cast<unsigned char>(utf8[i + offset]) : 0U;
    };
    if (byte(0) < 0x20 || byte(0) == 0x7F) return true;
    if (byte(0) == 0xC2 && byte(1) < 0xA0) return true;
    if (byte(0) != 0xE2) continue;
    const unsigned last = byte(2);
    if (byte(1) == 0x80 && (last == 0x8E || last == 0x8F || (last >= 0xA8 && last <= 0xAE)))
      return true;
    if (byte(1) == 0x81 && last >= 0xA6 && last <= 0xA9) return true;
  }
  return false;
}

std::optional<changes::Refusal> check_request(const Message& message) {
  if (has_unknown_fields(message)) return unknown_field("a field of the request");
  for (const char* name : {"reason", "request_id"}) {
    const auto* field = message.GetDescriptor()->FindFieldByName(name);
    if (field == nullptr ||
        !has_control_characters(message.GetReflection()->GetString(message, field)))
      continue;
    return changes::Refusal{
        changes::RefusalKind::invalid_argument,
        "CONTROL_CHARACTER",
        std::string(name) + " has a line break or another control character: leave it out",
        {{"field", name}}};
  }
  return std::nullopt;
}

std::variant<changes::ChangeRequest, changes::Refusal> read_request(
    const v1::CreateChangeRequest& message, const std::string& actor) {
  const v1::Change& change = message.change();
  if (auto refusal = check_request(message)) return *refusal;
  if (auto refusal = check_request(change)) return *refusal;
  changes::ChangeRequest request;
  for (const v1::GroupPatch& patch : change.patches()) {
    if (auto refusal = read_patch(patch, request.patches)) return *refusal;
  }
  if (change.has_apply_at_step()) request.apply_at_step = change.apply_at_step();
  request.reason = change.reason();
  request.actor = actor;
  request.request_id = message.request_id();
  request.etag = message.etag();
  request.create_time_us = TimeUtil::TimestampToMicroseconds(TimeUtil::GetCurrentTime());
  return request;
}

v1::Hyperparameters to_message(const changes::Settings& settings,
                               std::span<const changes::LedgerGroup> groups) {
  v1::Hyperparameters message;
  for (size_t i = 0; i < settings.groups.size(); ++i) {
    v1::ParamGroup& group = *message.add_groups();
    group.set_name(groups[i].name);
    group.set_parameter_count(groups[i].parameter_count);
    v1::HyperparameterValues& values = *group.mutable_values();
    const Options& options = settings.groups[i];
    if (settings.lr_pins[i]) values.set_learning_rate(*settings.lr_pins[i]);
    for (const changes::FieldSpec& spec : changes::field_specs()) {
      if (spec.get != nullptr && spec.field != changes::Field::learning_rate)
        set_value(spec.field, spec.get(options), values);
    }
  }
  message.mutable_job_values()->set_max_grad_norm(settings.max_grad_norm);
  message.mutable_job_values()->set_lr_scale(settings.lr_scale);
  return message;
}

v1::Change to_message(const changes::AcceptedChange& change,
                      std::span<const changes::LedgerGroup> groups) {
  v1::Change message;
  for (const changes::ValuePatch& patch : change.request.patches) {
    const int count = message.patches_size();
    v1::GroupPatch& group = count > 0 && message.patches(count - 1).group() == patch.group
                                ? *message.mutable_patches(count - 1)
                                : *message.add_patches();
    group.set_group(patch.group);
    set_value(patch.field, patch.value, *group.mutable_values());
  }
  if (change.request.apply_at_step) {
    message.set_apply_at_step(*change.request.apply_at_step);
  } else {
    message.set_next_step(true);
  }
  message.set_reason(change.request.reason);
  message.set_revision(change.revision);
  message.set_effective_step(change.effective_step);
  message.set_actor(change.request.actor);
  *message.mutable_create_time() = TimeUtil::MicrosecondsToTimestamp(change.request.create_time_us);
  *message.mutable_previous() = to_message(change.previous, groups);
  message.mutable_previous()->set_revision(change.revision - 1);
  message.mutable_previous()->set_effective_step(change.effective_step);
  *message.mutable_resulting() = to_message(change.resulting, groups);
  message.mutable_resulting()->set_revision(change.revision);
  message.mutable_resulting()->set_effective_step(change.effective_step);
  message.set_chain_hash(hash_bytes(change.chain_hash));
  if (change.request.cancels) message.set_cancels(*change.request.cancels);
  message.set_unconditional(change.unconditional);
  return message;
}

v1::HyperparameterSpec to_message(const changes::FieldSpec& spec) {
  v1::HyperparameterSpec message;
  message.set_field(std::string(spec.name));
  message.set_option_name(std::string(spec.option_name));
  message.set_min(spec.min);
  message.set_max(spec.max);
  message.set_min_exclusive(spec.min_exclusive);
  message.set_max_exclusive(spec.max_exclusive);
  message.set_mutable_at_runtime(true);
  message.set_per_group(spec.per_group);
  message.set_is_bool(spec.is_bool);
  message.set_description(std::string(spec.description));
  return message;
}

std::string hash_bytes(uint64_t hash) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(hash >> (56 - 8 * i));
  return bytes;
}

}  // namespace fusedbun::control
