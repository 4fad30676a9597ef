#include "fusedbun/launcher/control/change_text.h"

#include "fusedbun/dist/changes/change.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;
using control::v1::GroupPatch;
using control::v1::HyperparameterValues;

std::string value_text(const HyperparameterValues& values,
                       const google::protobuf::FieldDescriptor* field) {
  const auto* reflection = values.GetReflection();
  if (!reflection->HasField(values, field))
    return "schedule";  // only the learning rate may be absent
  if (field->cpp_type() == field->CPPTYPE_BOOL)
    return reflection->GetBool(values, field) ? "true" : "false";
  return text_of(reflection->GetDouble(values, field));
}

std::string differences(const std::string& where, const HyperparameterValues& before,
                        const HyperparameterValues& after) {
  std::string lines;
  const auto* descriptor = HyperparameterValues::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    const std::string from = value_text(before, field);
    const std::string to = value_text(after, field);
    if (from != to) lines += "  " + where + " " + field->name() + ": " + from + " -> " + to + "\n";
  }
  return lines;
}

std::string headline(const Change& change) {
  const std::string step = std::to_string(change.effective_step());
  const std::string revision = "change " + std::to_string(change.revision()) + ": ";
  switch (change.state()) {
    case Change::STATE_UNSPECIFIED:
      return "dry run: would be used from step " + step + " on; nothing was changed\n";
    case Change::APPLIED:
      return revision + "in use since step " + step + "\n";
    case Change::CANCELLED:
      return revision + "cancelled, so step " + step + " will not use it\n";
    case Change::REJECTED:
      return revision + "not used: " + shown(change.error()) + "\n";
    default:
      return revision + "accepted, used from step " + step + " on\n";
  }
}

std::string assignments_of(const GroupPatch& patch) {
  std::string text;
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  patch.values().GetReflection()->ListFields(patch.values(), &fields);
  for (const auto* field : fields) {
    const auto spec = changes::find_field(field->name());
    const bool unpins = field->name() == changes::name_of(changes::Field::unpin_learning_rate);
    const std::string name = spec && !unpins ? std::string(spec->option_name) : "lr";
    text += (text.empty() ? "" : " ") + name + "=" +
            (unpins ? "schedule" : value_text(patch.values(), field));
  }
  return patch.group() == "*" ? text : text + " (" + patch.group() + ")";
}

}  // namespace

std::string describe(const Change& change) {
  std::string text = headline(change);
  if (change.state() == Change::CANCELLED) return text;
  text += differences("job", change.previous().job_values(), change.resulting().job_values());
  for (int i = 0; i < change.resulting().groups_size(); ++i) {
    const auto& group = change.resulting().groups(i);
    text += differences(group.name(), change.previous().groups(i).values(), group.values());
  }
  return text;
}

std::string what(const Change& change) {
  if (change.cancels() != 0) return "cancels " + std::to_string(change.cancels());
  std::string text;
  for (const GroupPatch& patch : change.patches()) {
    text += (text.empty() ? "" : ", ") + assignments_of(patch);
  }
  return text;
}

}  // namespace fusedbun::launcher
