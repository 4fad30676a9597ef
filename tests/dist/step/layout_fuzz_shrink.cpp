// Makes a failing case smaller: one thing at a time, kept if the case still fails in the same way, until nothing helps.
#include <algorithm>

#include "fusedbun/tests/dist/step/layout_fuzz_run.h"

namespace fusedbun::testing {
namespace {

class Shrinking {
 public:
  Shrinking(const FuzzCase& failing, const std::function<Failure(const FuzzCase&)>& run, int limit)
      : smallest_(failing), run_(run), runs_left_(limit), kind_(run(failing).kind) {}

  FuzzCase shrink() {
    if (kind_.empty()) return smallest_;
    do {
      helped_ = false;
      drop_each(&FuzzCase::steps, 1);
      drop_each(&FuzzCase::changes, 0);
      drop_parameters();
      drop_actions();
      use_fewer_ranks();
      simplify_options();
      simplify_groups();
      simplify_parameters();
      simplify_actions();
    } while (helped_ && runs_left_ > 0);
    return smallest_;
  }

 private:
  bool try_with(const std::function<void(FuzzCase&)>& change) {
    if (runs_left_ <= 0) return false;
    FuzzCase candidate = smallest_;
    change(candidate);
    if (to_cpp(candidate) == to_cpp(smallest_)) return false;
    --runs_left_;
    if (run_(candidate).kind != kind_) return false;
    smallest_ = std::move(candidate);
    helped_ = true;
    return true;
  }

  template <class Item>
  void drop_each(std::vector<Item> FuzzCase::*list, size_t at_least) {
    for (size_t i = (smallest_.*list).size(); i-- > 0;) {
      if ((smallest_.*list).size() <= at_least) return;
      try_with([&](FuzzCase& c) { (c.*list).erase((c.*list).begin() + static_cast<int64_t>(i)); });
    }
  }

  // One that is trained from the beginning must stay.
  void drop_parameters() {
    for (size_t i = smallest_.parameters.size(); i-- > 0;) {
      try_with([&](FuzzCase& c) {
        FuzzCase without = c;
        without.parameters.erase(without.parameters.begin() + static_cast<int64_t>(i));
        const bool is_allowed = std::ranges::any_of(without.parameters, [&](const auto& p) {
          return !p.frozen && c.groups[static_cast<size_t>(p.group)].joins_at == 0;
        });
        if (is_allowed) c = without;
      });
    }
  }

  // A guard that begins must end, so the two go together.
  void drop_actions() {
    for (size_t s = 0; s < smallest_.steps.size(); ++s) {
      for (size_t a = smallest_.steps[s].actions.size(); a-- > 0;) {
        try_with([&](FuzzCase& c) {
          auto& actions = c.steps[s].actions;
          if (actions[a].act == Act::end_guard) return;
          if (actions[a].act == Act::begin_guard) {
            const auto end =
                std::find_if(actions.begin() + static_cast<int64_t>(a), actions.end(),
                             [](const FuzzAction& action) { return action.act == Act::end_guard; });
            if (end != actions.end()) actions.erase(end);
          }
          actions.erase(actions.begin() + static_cast<int64_t>(a));
        });
      }
    }
  }

  void use_fewer_ranks() {
    while (smallest_.ranks > 1 && try_with([](FuzzCase& c) { --c.ranks; })) {
    }
  }

  void simplify_options() {
    const FuzzCase plain;
    const auto reset = [&](auto field) { try_with([&](FuzzCase& c) { c.*field = plain.*field; }); };
    reset(&FuzzCase::world);
    reset(&FuzzCase::transport);
    reset(&FuzzCase::host_window);
    reset(&FuzzCase::min_rows_per_rank);
    reset(&FuzzCase::bucket_bytes);
    reset(&FuzzCase::in_place_bytes);
    reset(&FuzzCase::wire_bf16);
    reset(&FuzzCase::updates_bf16);
    reset(&FuzzCase::max_grad_norm);
    reset(&FuzzCase::divisor);
    reset(&FuzzCase::step_in_backward);
    reset(&FuzzCase::release);
    reset(&FuzzCase::different_starts);
  }

  void simplify_groups() {
    for (size_t g = 0; g < smallest_.groups.size(); ++g) {
      const FuzzGroup plain;
      const auto reset = [&](auto field) {
        try_with([&](FuzzCase& c) { c.groups[g].*field = plain.*field; });
      };
      reset(&FuzzGroup::lr);
      reset(&FuzzGroup::matrix_view);
      reset(&FuzzGroup::nonfinite);
      reset(&FuzzGroup::centralize);
      reset(&FuzzGroup::bf16_momentum);
      reset(&FuzzGroup::prepare_hessian);
      try_with([&](FuzzCase& c) { c.groups[g].preset = "elementwise"; });
    }
    while (smallest_.groups.size() > 1 && try_with([](FuzzCase& c) {
             const int last = static_cast<int>(c.groups.size()) - 1;
             for (FuzzParameter& p : c.parameters) p.group = p.group == last ? 0 : p.group;
             c.groups.pop_back();
           })) {
    }
  }

  void simplify_parameters() {
    for (size_t i = 0; i < smallest_.parameters.size(); ++i) {
      const auto change = [&](const std::function<void(FuzzParameter&)>& simplify) {
        return try_with([&](FuzzCase& c) { simplify(c.parameters[i]); });
      };
      change([](FuzzParameter& p) { p.type = ElementType::f32; });
      change([](FuzzParameter& p) { p.layout = Layout::contiguous; });
      change([](FuzzParameter& p) { p.tied = false; });
      change([](FuzzParameter& p) { p.frozen = false; });
      change([](FuzzParameter& p) { p.shape = {1}; });
      for (size_t d = 0; d < smallest_.parameters[i].shape.size(); ++d) {
        while (change([&](FuzzParameter& p) { p.shape[d] = (p.shape[d] + 1) / 2; })) {
        }
        while (
            change([&](FuzzParameter& p) { p.shape[d] = std::max<int64_t>(1, p.shape[d] - 1); })) {
        }
      }
    }
  }

  void simplify_actions() {
    const FuzzAction plain;
    for (size_t s = 0; s < smallest_.steps.size(); ++s) {
      try_with([&](FuzzCase& c) { c.steps[s].loss_scale = 1; });
      for (size_t a = 0; a < smallest_.steps[s].actions.size(); ++a) {
        const auto change = [&](const std::function<void(FuzzAction&)>& simplify) {
          try_with([&](FuzzCase& c) { simplify(c.steps[s].actions[a]); });
        };
        change([&](FuzzAction& action) { action.poisoned_rank = plain.poisoned_rank; });
        change([&](FuzzAction& action) {
          action.odd_rank = plain.odd_rank;
          action.unused = plain.unused;
        });
        change([&](FuzzAction& action) { action.parameters = plain.parameters; });
        // Calls that all ranks must make are drawn for all of them, so this never parts the ranks.
        change([&](FuzzAction& action) { action.ranks = plain.ranks; });
      }
    }
  }

  FuzzCase smallest_;
  const std::function<Failure(const FuzzCase&)>& run_;
  int runs_left_;
  std::string kind_;
  bool helped_ = false;
};

}  // namespace

FuzzCase shrink(const FuzzCase& failing, const std::function<Failure(const FuzzCase&)>& run,
                int limit) {
  return Shrinking(failing, run, limit).shrink();
}

}  // namespace fusedbun::testing
