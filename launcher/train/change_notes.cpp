#include "fusedbun/launcher/train/change_notes.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace fusedbun::train {
namespace {

std::string words_of(const changes::ChangeEntry& entry, const std::vector<std::string>& groups) {
  const auto spec = changes::find_field(changes::name_of(entry.field));
  const std::string of_group =
      entry.group < 0 ? "" : " (" + groups.at(static_cast<size_t>(entry.group)) + ")";
  if (entry.field == changes::Field::unpin_learning_rate)
    return "learning_rate follows the schedule" + of_group;
  char number[48];
  std::snprintf(number, sizeof number, "%g", entry.value);
  const bool is_switch = spec && spec->is_bool;
  return std::string(changes::name_of(entry.field)) + " = " +
         (is_switch ? (entry.value != 0 ? "true" : "false") : number) + of_group;
}

}  // namespace

void ChangeNotes::accept(std::span<const changes::ChangeEntry> entries, int64_t revision) {
  known_revision_ = revision;
  for (const changes::ChangeEntry& entry : entries) {
    if (entry.field == changes::Field::cancel) {
      std::erase_if(coming_, [&](const changes::ChangeEntry& coming) {
        return coming.revision == static_cast<int64_t>(entry.value);
      });
    } else if (entry.effective_step >= first_step_) {
      coming_.push_back(entry);
    }
  }
}

std::vector<std::string> ChangeNotes::take(int64_t job_step) {
  std::map<int64_t, std::string> notes;  // by revision
  std::erase_if(coming_, [&](const changes::ChangeEntry& entry) {
    if (entry.effective_step > job_step) return false;
    std::string& note = notes[entry.revision];
    note += (note.empty() ? "revision " + std::to_string(entry.revision) + ": " : ", ") +
            words_of(entry, groups_);
    return true;
  });
  std::vector<std::string> texts;
  for (auto& [revision, note] : notes) texts.push_back(std::move(note));
  return texts;
}

}  // namespace fusedbun::train
