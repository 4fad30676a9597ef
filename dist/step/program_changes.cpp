#include "fusedbun/dist/step/program_changes.h"

#include "fusedbun/dist/plan/hex.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <iterator>

namespace fusedbun {

namespace {

// `now`, except for what decides which tensors there are: that is as `made`.
Options stored_as(const Options& made, Options now) {
  now.accumulator = made.accumulator;
  now.matrix_view = made.matrix_view;
  now.momentum_dtype = made.momentum_dtype;
  now.low_precision = made.low_precision;
  now.prepare_hessian = made.prepare_hessian;
  now.scale_by_parameter_rms = made.scale_by_parameter_rms;
  if ((made.momentum_beta > 0) != (now.momentum_beta > 0)) now.momentum_beta = made.momentum_beta;
  return now;
}

}  // namespace

void ProgramChanges::accept_groups(std::vector<RegisteredParameter> frozen) {
  group_sizes_.clear();
  for (const auto& group : model_.groups) group_sizes_.push_back(group.params().size());
  made_with_ = model_.all_group_options();
  std::ranges::move(frozen, std::back_inserter(frozen_));
  std::erase_if(frozen_, [&](const RegisteredParameter& parameter) {
    return std::ranges::any_of(model_.registered, [&](const RegisteredParameter& trained) {
      return trained.tensor.is_same(parameter.tensor);
    });
  });
}

ProgramChanges::Events ProgramChanges::find_writes(std::string& problem) {
  using Difference = TensorSnapshot::Difference;
  Events events;
  written_.clear();
  for (int p = 0; p < model_.parameter_count(); ++p) {
    const ParameterMatrix& matrix = model_.matrices[p];
    const auto parameter = [&] { return "parameter '" + model_.name(p) + "'"; };
    if (const auto why = matrix.why_unusable()) {
      if (problem.empty()) {
        problem =
            parameter() + " " + *why +
            ": convert and move the model before the optimizer is made, or make a new optimizer";
      }
      continue;
    }
    const Difference difference = matrix.foreign_write();
    if (difference == Difference::none) continue;
    written_.push_back(p);
    if (difference == Difference::values && matrix.is_shared() && problem.empty()) {
      problem =
          parameter() +
          " was written since the last step, but the ranks of this host share one replica of the "
          "parameters, so every rank's write hit all of them: write inside write_parameters(), "
          "which applies a write once, or set ShardedOptions::host_window = false";
    }
    events[model_.name(p)] =
        std::string(difference == Difference::storage ? "got new memory" : "was written") +
        " (values " + plan::to_hex(sampled_hash(matrix.parameter())) + ")";
  }
  return events;
}

ProgramChanges::Events ProgramChanges::unfrozen() const {
  Events events;
  for (const RegisteredParameter& parameter : frozen_) {
    if (parameter.tensor.requires_grad()) events[parameter.name] = "was unfrozen";
  }
  return events;
}

std::vector<RegisteredParameter> ProgramChanges::take_unfrozen() {
  std::vector<RegisteredParameter> taken;
  std::ranges::copy_if(
      frozen_, std::back_inserter(taken),
      [](const RegisteredParameter& parameter) { return parameter.tensor.requires_grad(); });
  std::erase_if(frozen_, [](const RegisteredParameter& parameter) {
    return parameter.tensor.requires_grad();
  });
  return taken;
}

std::string ProgramChanges::problem_of_groups() const {
  if (model_.groups.size() != group_sizes_.size()) {
    return "the optimizer has " + std::to_string(model_.groups.size()) +
           " parameter groups, but was given " + std::to_string(group_sizes_.size()) +
           ": torch::optim::Optimizer::add_param_group is not virtual; call "
           "ShardedFusedbun::add_param_group on all ranks";
  }
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    const std::string group = "parameter group " + std::to_string(g);
    if (model_.groups[g].params().size() != group_sizes_[g]) {
      return group + " has " + std::to_string(model_.groups[g].params().size()) +
             " tensors, but was given " + std::to_string(group_sizes_[g]) +
             ": add parameters with ShardedFusedbun::add_param_group";
    }
    if (!model_.has_own_options(g)) {
      return group + " has options of another optimizer: give it FusedbunOptions";
    }
    const Options& now = model_.group_options(g);
    const Options stored = stored_as(made_with_[g], now);
    const bool is_same = static_cast<const Structure&>(stored) == now &&
                         (stored.momentum_beta > 0) == (now.momentum_beta > 0);
    if (!is_same) {
      return group + " has other structural options than it was made with (" +
             structural_difference(stored, now) +
             "): they decide what is stored; make a new optimizer";
    }
  }
  return {};
}

uint64_t ProgramChanges::hash(const Events& events) {
  uint64_t hash = 0;
  for (const auto& [name, what] : events) {
    hash = XXH3_64bits_withSeed(name.data(), name.size(), hash);
    hash = XXH3_64bits_withSeed(what.data(), what.size(), hash) | 1;
  }
  return hash;
}

}  // namespace fusedbun
