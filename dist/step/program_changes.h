#pragma once
// ProgramChanges: finds out what the program did to the parameters and groups between two steps: values that it wrote, memory
// that it replaced, parameters that it unfroze, groups that it added behind the optimizer's back. What can be followed is an
// event, named so that ranks can compare; what cannot is a problem, in one sentence.
//
// Thread safety: none.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fusedbun/dist/step/sharded_model.h"

namespace fusedbun {

class ProgramChanges {
 public:
  /// Parameter name -> what was done to it, with a hash of its values: equal on ranks that did the same.
  using Events = std::map<std::string, std::string>;

  explicit ProgramChanges(const ShardedModel& model) : model_(model) {}

  /// The groups as they are now are the optimizer's; `frozen` are tensors of new groups that require no gradient. A parameter that
  /// the model holds by now is not frozen any more.
  void accept_groups(std::vector<RegisteredParameter> frozen);

  /// Looks for parameters that were written or replaced since the last step; sets `problem` if one cannot be stepped as it is.
  /// Call it while no rank can be writing rows of this step: they arrive where it looks.
  Events find_writes(std::string& problem);
  /// The parameters that the last find_writes() found.
  const std::vector<int>& written() const { return written_; }
  /// Frozen parameters that require gradients now.
  Events unfrozen() const;
  /// The same as tensors; they are not frozen any more.
  std::vector<RegisteredParameter> take_unfrozen();
  /// A group that is not as it was accepted, in one sentence; empty if all are.
  std::string problem_of_groups() const;

  /// 0 for no events.
  static uint64_t hash(const Events& events);

 private:
  const ShardedModel& model_;
  std::vector<size_t> group_sizes_;  ///< tensors of each accepted group
  std::vector<Options>
      made_with_;  ///< each accepted group's options then: what they have stored stays
  std::vector<RegisteredParameter> frozen_;
  std::vector<int> written_;
};

}  // namespace fusedbun
