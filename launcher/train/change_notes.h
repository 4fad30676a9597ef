#pragma once
// ChangeNotes: which changes of hyperparameters a step was the first to use, in words, for those who look at curves.
//
// Thread safety: none.
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fusedbun/dist/changes/change.h"

namespace fusedbun::train {

class ChangeNotes {
 public:
  /// Of a job that begins at `first_step`: what steps before it used was noted by an earlier attempt.
  ChangeNotes(std::vector<std::string> groups, int64_t first_step)
      : groups_(std::move(groups)), first_step_(first_step) {}

  /// Revisions up to this one were accepted.
  int64_t known_revision() const { return known_revision_; }
  /// The changes after it, up to `revision`, as all ranks take them in.
  void accept(std::span<const changes::ChangeEntry> entries, int64_t revision);

  /// "revision 3: weight_decay = 0.01 (no_decay), lr_scale = 0.5", one per change that `job_step` or a step since the last call was
  /// the first to use.
  std::vector<std::string> take(int64_t job_step);

 private:
  std::vector<std::string> groups_;
  int64_t first_step_;
  int64_t known_revision_ = 0;
  std::vector<changes::ChangeEntry> coming_;
};

}  // namespace fusedbun::train
