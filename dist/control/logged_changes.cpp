#include "fusedbun/dist/control/logged_changes.h"

#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/control/change_messages.h"

namespace fusedbun::control {

v1::ListChangesResponse logged_changes(const std::filesystem::path& run_dir, int64_t steps) {
  const std::vector<changes::LoggedChange> logged = changes::read_change_log(run_dir);
  v1::ListChangesResponse all;
  for (const changes::LoggedChange& change : logged) {
    v1::Change& message = *all.add_changes();
    message = to_message(changes::AcceptedChange{.revision = change.revision,
                                                 .effective_step = change.effective_step,
                                                 .request = change.request,
                                                 .entries = {},
                                                 .previous = {},
                                                 .resulting = {},
                                                 .chain_hash = change.chain_hash},
                         {});
    message.clear_previous();
    message.clear_resulting();
    message.set_name("jobs/-/changes/" + std::to_string(change.revision));
    const bool was_used = change.effective_step < steps || change.request.cancels;
    message.set_state(change.cancelled ? v1::Change::CANCELLED
                      : was_used       ? v1::Change::APPLIED
                                       : v1::Change::REJECTED);
    if (message.state() == v1::Change::REJECTED) message.set_error("the run ended before its step");
  }
  return all;
}

}  // namespace fusedbun::control
