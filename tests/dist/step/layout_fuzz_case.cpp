#include "fusedbun/tests/dist/step/layout_fuzz_case.h"

#include <algorithm>
#include <array>
#include <random>

#include "fusedbun/tests/dist/step/layout_fuzz_values.h"

namespace fusedbun::testing {
namespace {

using plan::GradientTransport;

const std::array<std::string, 17> kIdioms = {"one_pass",
                                             "guard_per_pass",
                                             "one_guard_around_several",
                                             "guards_alone",
                                             "guard_without_backward",
                                             "zero_grad_again",
                                             "batch_dropped_on_one_rank",
                                             "two_losses",
                                             "one_graph_twice",
                                             "second_pass_reaches_some",
                                             "set_by_hand",
                                             "set_by_hand_beside_passes",
                                             "thrown_away",
                                             "scaled_after_guards",
                                             "kept_from_last_step",
                                             "uneven_passes",
                                             "written_after_sent"};

// Draws one case. What is drawn later looks at what was drawn before, so that the whole is allowed.
class Drawing {
 public:
  Drawing(uint64_t seed, FuzzWorld world, GradientTransport transport) : random_(seed) {
    case_.seed = seed;
    case_.world = world;
    case_.transport = transport;
  }

  FuzzCase draw() {
    draw_sharding();
    draw_groups();
    draw_parameters();
    const int count = static_cast<int>(between(2, 5));
    for (int step = 0; step < count; ++step) draw_step(step);
    if (!saves_) draw_changes(count);
    return case_;
  }

 private:
  int64_t between(int64_t min, int64_t max) {
    return min + static_cast<int64_t>(random_() % static_cast<uint64_t>(max - min + 1));
  }
  bool chance(double probability) {
    return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
  }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return *(list.begin() + between(0, std::ssize(list) - 1));
  }
  /// A mask of some ids, now and then of all.
  uint32_t some() { return chance(0.2) ? ~0u : static_cast<uint32_t>(random_()) | 1u; }
  bool is_single_use() const {
    return case_.step_in_backward || case_.release == GradientRelease::in_hook;
  }

  void draw_sharding() {
    const bool is_gloo = case_.world == FuzzWorld::gloo;
    case_.ranks = static_cast<int>(is_gloo       ? between(2, 3)
                                   : chance(0.7) ? between(1, 4)
                                                 : between(5, 8));
    if (case_.transport == GradientTransport::automatic) {
      case_.transport = one_of({GradientTransport::automatic, GradientTransport::automatic,
                                GradientTransport::collective, GradientTransport::point_to_point,
                                GradientTransport::shared_memory});
    }
    if (case_.transport == GradientTransport::shared_memory && case_.ranks == 1) case_.ranks = 2;
    case_.host_window = chance(0.5);
    case_.min_rows_per_rank = between(1, 6);
    case_.bucket_bytes = one_of<int64_t>({64, 400, 2000, 8000, 25 << 20});
    case_.in_place_bytes = one_of<int64_t>({0, 1, 200, 2000, 64 << 10});
    case_.wire_bf16 = case_.transport != GradientTransport::collective && chance(0.2);
    case_.updates_bf16 = case_.transport != GradientTransport::collective && chance(0.2);
    case_.step_in_backward = chance(0.15);
    case_.release = one_of({GradientRelease::after_step, GradientRelease::after_step,
                            GradientRelease::in_hook, GradientRelease::never});
    if (!case_.step_in_backward && chance(0.25)) {
      case_.max_grad_norm = chance(0.3) ? 1e6 : 0.5 * static_cast<double>(between(1, 6));
    }
    if (chance(0.15)) case_.divisor = one_of({1.0, 2.0, 3.0, 7.5});
    case_.different_starts = chance(0.5);
  }

  void draw_groups() {
    const int64_t count = chance(0.5) ? 1 : between(2, 4);
    for (int64_t g = 0; g < count; ++g) {
      FuzzGroup group;
      group.preset = one_of<const char*>(
          {"recommended", "sm3", "sm3", "compact", "lean", "elementwise", "fusedbun", "fusion"});
      group.lr = 0.002 * static_cast<double>(between(1, 10));
      if (chance(0.3)) group.matrix_view = MatrixView::last_two;
      if (case_.step_in_backward || chance(0.15)) group.nonfinite = Nonfinite::propagate;
      group.centralize = chance(0.5);
      group.bf16_momentum = chance(0.2);
      group.prepare_hessian = chance(0.1);
      if (g > 0 && chance(0.4)) group.joins_at = static_cast<int>(between(1, 2));
      case_.groups.push_back(group);
    }
    // In the order in which the optimizer gets them.
    std::ranges::stable_sort(case_.groups, {}, &FuzzGroup::joins_at);
  }

  std::vector<int64_t> draw_shape(bool is_stack) {
    if (is_stack && chance(0.6)) return {between(2, 5), between(1, 12), between(1, 9)};
    switch (between(0, 9)) {
      case 0:
        return {};
      case 1:
        return {1, between(1, 40)};
      case 2:
        return {between(1, 40), 1};
      case 3:
        return {between(1, 9), between(1, 4), between(1, 3), between(1, 3)};
      case 4:
      case 5:
        return {between(1, 90)};
      case 6:
        if (chance(0.5)) return {0, between(1, 5)};
        return {between(30, 70), 33};
      default:
        return {between(1, 50), between(1, 30)};
    }
  }

  void draw_parameters() {
    const int count = static_cast<int>(between(1, 8));
    const bool is_strided = case_.transport != GradientTransport::shared_memory && chance(0.35);
    const ElementType only = one_of({ElementType::f32, ElementType::f32, ElementType::f64});
    const bool is_mixed = chance(0.35);
    for (int id = 0; id < count; ++id) {
      FuzzParameter parameter;
      parameter.id = id;
      // The first is always there, can be trained and has elements: passes are counted where it is reached.
      parameter.group = id == 0 ? 0 : static_cast<int>(between(0, std::ssize(case_.groups) - 1));
      const FuzzGroup& group = case_.groups[static_cast<size_t>(parameter.group)];
      do {
        parameter.shape = draw_shape(group.matrix_view == MatrixView::last_two);
      } while (id == 0 && element_count(parameter) == 0);
      parameter.type =
          is_mixed ? one_of({ElementType::f32, ElementType::f64, ElementType::bf16}) : only;
      if (is_strided && chance(0.5)) {
        parameter.layout = one_of({Layout::transposed, Layout::every_second});
      }
      if (id > 0) parameter.frozen = chance(0.12);
      parameter.tied = chance(0.1);
      case_.parameters.push_back(parameter);
    }
  }

  // ---- one step ----------------------------------------------------------------------------------

  FuzzAction act(Act what, double value = 1) { return {.act = what, .value = value}; }

  /// A pass over all, or over some on all ranks, or with one rank that uses less.
  FuzzAction pass(bool may_leave_out = true) {
    FuzzAction action;
    if (case_.step_in_backward || !may_leave_out) return action;
    if (chance(0.25)) action.parameters = some();
    if (case_.ranks > 1 && chance(0.25)) {
      action.odd_rank = static_cast<int>(between(0, case_.ranks - 1));
      action.unused = some();
    }
    return action;
  }

  void add_guarded(std::vector<FuzzAction>& list, int64_t passes, bool in_one) {
    if (in_one) list.push_back(act(Act::begin_guard));
    for (; passes > 0; --passes) {
      if (!in_one) list.push_back(act(Act::begin_guard));
      list.push_back(pass(false));
      if (!in_one) list.push_back(act(Act::end_guard));
    }
    if (in_one) list.push_back(act(Act::end_guard));
  }

  // Guarded passes of an earlier step, still there or refused, that zero_grad takes away: no pass comes between that and a
  // gradient set by hand, so nobody can tell it from what the passes left, scaled out of place. It counts as theirs.
  bool may_have_zeroed_passes() const {
    if (case_.steps.empty()) return false;
    const Idiom last = case_.steps.back().idiom;
    const bool had_guards = std::ranges::any_of(
        case_.steps.back().actions, [](const FuzzAction& a) { return a.act == Act::begin_guard; });
    return case_.release == GradientRelease::never || had_guards ||
           last == Idiom::written_after_sent;
  }

  bool is_allowed(Idiom idiom) const {
    switch (idiom) {
      case Idiom::two_losses:
      case Idiom::one_graph_twice:
      case Idiom::second_pass_reaches_some:
      case Idiom::thrown_away:
      case Idiom::batch_dropped_on_one_rank:
      case Idiom::written_after_sent:
        return !is_single_use();
      case Idiom::uneven_passes:
        return case_.ranks > 1 && !case_.step_in_backward;
      case Idiom::kept_from_last_step:
        return case_.release == GradientRelease::never && !case_.step_in_backward;
      case Idiom::set_by_hand:
        return !may_have_zeroed_passes();
      case Idiom::set_by_hand_beside_passes:
        return !case_.step_in_backward && !may_have_zeroed_passes();
      default:
        return true;
    }
  }

  void draw_step(int step) {
    FuzzStep drawn;
    do {
      drawn.idiom = static_cast<Idiom>(between(0, std::ssize(kIdioms) - 1));
    } while (!is_allowed(drawn.idiom));
    std::vector<FuzzAction>& list = drawn.actions;
    if (case_.release == GradientRelease::never && drawn.idiom != Idiom::kept_from_last_step) {
      list.push_back(act(Act::zero_grad, chance(0.5) && !case_.step_in_backward ? 0 : 1));
    }
    draw_events(step, drawn.idiom, list);
    draw_idiom(drawn.idiom, list);
    if (!case_.step_in_backward && chance(0.25)) drawn.loss_scale = one_of({2.0, 0.5, 1024.0});
    // A step that is refused adopts nothing, so what was unfrozen has no hooks in the next one either.
    hookless_ = hookless_ ||
                std::ranges::any_of(list, [](const auto& a) { return a.act == Act::unfreeze; });
    if (hookless_) use_all_parameters(list);
    hookless_ = hookless_ &&
                (drawn.idiom == Idiom::uneven_passes || drawn.idiom == Idiom::written_after_sent);
    draw_poison(list);
    if (chance(0.3)) list.push_back(act(Act::collective));
    if (chance(0.1)) list.insert(list.end() - 1, act(Act::collective));
    case_.steps.push_back(drawn);
  }

  // Passes that reach only what had no hooks yet cannot be told from gradients set by hand.
  static void use_all_parameters(std::vector<FuzzAction>& list) {
    for (FuzzAction& action : list) {
      if (action.act != Act::pass && action.act != Act::set_grad) continue;
      action.parameters = ~0u;
      action.odd_rank = -1;
      action.unused = 0;
    }
  }

  // What happens between two steps.
  void draw_events(int step, Idiom idiom, std::vector<FuzzAction>& list) {
    const bool may_share = case_.transport == GradientTransport::shared_memory ||
                           (case_.transport == GradientTransport::automatic && case_.host_window);
    if (chance(0.12)) list.push_back(act(Act::set_lr, one_of({0.5, 2.0})));
    if (chance(0.12)) {
      list.push_back(act(Act::write));
      list.back().parameters = some();
    }
    if (!may_share && chance(0.15)) {
      list.push_back(act(chance(0.5) ? Act::write_directly : Act::set_data));
      list.back().parameters = some();
    }
    const bool has_frozen = std::ranges::any_of(case_.parameters, &FuzzParameter::frozen);
    if (has_frozen && !case_.step_in_backward && idiom != Idiom::set_by_hand_beside_passes &&
        chance(0.4)) {
      list.push_back(act(Act::unfreeze));
      list.back().parameters = some();
      unfreezes_ = true;
    }
    const bool grows = std::ranges::any_of(case_.groups, [&](const FuzzGroup& group) {
      return group.joins_at > 0 && group.joins_at <= step;
    });
    if (step > 0 && !unfreezes_ && !grows && case_.release != GradientRelease::never &&
        chance(0.15)) {
      list.push_back(act(Act::save_and_load));
      saves_ = true;
    }
  }

  // A NaN that all ranks skip for.
  void draw_poison(std::vector<FuzzAction>& list) {
    const bool skips = std::ranges::any_of(case_.groups, [](const FuzzGroup& group) {
      return group.nonfinite == Nonfinite::skip && group.joins_at == 0;
    });
    if (!skips || !chance(0.1)) return;
    for (FuzzAction& action : list) {
      if (action.act != Act::pass && action.act != Act::set_grad) continue;
      action.poisoned_rank = static_cast<int>(between(0, case_.ranks - 1));
      return;
    }
  }

  void draw_idiom(Idiom idiom, std::vector<FuzzAction>& list) {
    switch (idiom) {
      case Idiom::one_pass:
        return list.push_back(pass());
      case Idiom::guard_per_pass:
        add_guarded(list, between(1, 3), false);
        return list.push_back(pass());
      case Idiom::one_guard_around_several:
        add_guarded(list, between(2, 4), true);
        return list.push_back(pass());
      case Idiom::guards_alone:
        return add_guarded(list, between(1, 3), chance(0.5));
      case Idiom::guard_without_backward:
        add_guarded(list, 0, true);
        return list.push_back(pass());
      case Idiom::zero_grad_again:
        return draw_zero_grad_again(list);
      case Idiom::batch_dropped_on_one_rank: {
        const auto rank = 1u << between(0, case_.ranks - 1);
        list.push_back({.ranks = rank});
        list.push_back({.act = Act::zero_grad, .ranks = rank, .value = chance(0.5) ? 1.0 : 0.0});
        return list.push_back(pass());
      }
      case Idiom::two_losses:
        list.push_back(pass());
        list.push_back(pass());
        if (chance(0.3)) list.back().ranks = static_cast<uint32_t>(random_());
        return;
      case Idiom::one_graph_twice:
        list.push_back(pass());
        list.back().value = 2;
        return;
      case Idiom::kept_from_last_step:
        return list.push_back(pass());
      default:
        return draw_rarer_idiom(idiom, list);
    }
  }

  void draw_zero_grad_again(std::vector<FuzzAction>& list) {
    const bool guards = is_single_use() || chance(0.5);
    if (guards) {
      add_guarded(list, between(1, 2), chance(0.5));
    } else {
      list.push_back(pass());
    }
    list.push_back(act(Act::zero_grad, chance(0.5) ? 1 : 0));
    if (chance(0.5)) add_guarded(list, between(1, 2), chance(0.5));
    list.push_back(pass());
  }

  void draw_rarer_idiom(Idiom idiom, std::vector<FuzzAction>& list) {
    switch (idiom) {
      case Idiom::second_pass_reaches_some:
        list.push_back(pass());
        list.push_back({.parameters = some()});
        return;
      case Idiom::set_by_hand:
        list.push_back({.act = Act::set_grad, .parameters = case_.step_in_backward ? ~0u : some()});
        return;
      case Idiom::set_by_hand_beside_passes: {
        const uint32_t passed = some();
        add_guarded(list, between(1, 2), true);
        for (FuzzAction& action : list) {
          if (action.act == Act::pass) action.parameters = passed;
        }
        list.push_back({.act = Act::set_grad, .parameters = ~passed});
        return;
      }
      case Idiom::thrown_away: {
        list.push_back(pass());
        list.push_back({.act = Act::drop_grad, .parameters = some()});
        if (chance(0.5)) list.back().ranks = static_cast<uint32_t>(random_());
        if (chance(0.6)) list.push_back({.parameters = some()});
        return;
      }
      case Idiom::scaled_after_guards:
        add_guarded(list, between(1, 3), chance(0.5));
        list.push_back(act(Act::scale_grad, one_of({0.5, 0.25, 2.0})));
        if (chance(0.5)) list.back().ranks = static_cast<uint32_t>(random_());
        return;
      case Idiom::uneven_passes:
        add_guarded(list, between(1, 2), false);
        list.push_back(act(Act::begin_guard));
        list.push_back({.ranks = 1u << between(0, case_.ranks - 1)});
        list.push_back(act(Act::end_guard));
        return list.push_back(pass(false));
      default:  // written_after_sent
        list.push_back(pass(false));
        list.push_back(act(Act::write_sent, 0.5));
        list.back().ranks = chance(0.5) ? ~0u : 1u << between(0, case_.ranks - 1);
        return;
    }
  }

  void draw_changes(int steps) {
    if (!chance(0.35)) return;
    for (int64_t count = between(1, 3); count > 0; --count) {
      FuzzChange change;
      change.announced = case_.changes.empty() ? between(0, 1) : case_.changes.back().announced;
      change.effective = change.announced + changes::kLead + between(0, steps > 3 ? 1 : 0);
      change.group = -1;
      const auto field = one_of<changes::Field>(
          {changes::Field::learning_rate, changes::Field::unpin_learning_rate,
           changes::Field::lr_scale, changes::Field::eps, changes::Field::beta_decay,
           changes::Field::weight_decay, changes::Field::momentum_beta, changes::Field::centralize,
           changes::Field::use_rms, changes::Field::max_grad_norm});
      change.field = field;
      change.value = draw_value(field);
      const bool is_job =
          field == changes::Field::lr_scale || field == changes::Field::max_grad_norm;
      if (field == changes::Field::max_grad_norm && case_.step_in_backward) continue;
      if (field == changes::Field::momentum_beta) {
        // Whether momentum is stored is fixed; the first group's may change if it has one.
        if (case_.groups[0].options().momentum_beta == 0) continue;
        change.group = 0;
      } else if (!is_job && chance(0.4)) {
        change.group = 0;
      }
      case_.changes.push_back(change);
    }
  }

  double draw_value(changes::Field field) {
    switch (field) {
      case changes::Field::learning_rate:
        return 0.003 * static_cast<double>(between(1, 9));
      case changes::Field::lr_scale:
        return one_of({0.5, 2.0, 0.1});
      case changes::Field::eps:
        return one_of({1e-9, 1e-7});
      case changes::Field::beta_decay:
        return one_of({0.6, 0.9});
      case changes::Field::weight_decay:
        return one_of({0.0, 0.1});
      case changes::Field::momentum_beta:
        return one_of({0.5, 0.8});
      case changes::Field::centralize:
      case changes::Field::use_rms:
        return chance(0.5) ? 1 : 0;
      case changes::Field::max_grad_norm:
        return one_of({0.0, 0.5, 1e6});
      default:
        return 1;
    }
  }

  FuzzCase case_;
  std::mt19937_64 random_;
  bool unfreezes_ = false, saves_ = false;
  bool hookless_ = false;  ///< some parameter was unfrozen and not adopted
};

}  // namespace

std::span<const std::string> idiom_names() {
  return kIdioms;
}

Options FuzzGroup::options() const {
  Options options = fusedbun::preset(preset, lr);
  options.matrix_view = matrix_view;
  options.nonfinite = nonfinite;
  options.centralize = centralize;
  if (bf16_momentum && options.momentum_beta > 0) options.momentum_dtype = MomentumDtype::bf16;
  if (prepare_hessian) {
    options.prepare_hessian = true;
    options.hessian_source = HessianSource::raw;
  }
  return options;
}

bool does(const FuzzAction& action, int rank) {
  return (action.ranks >> rank & 1) != 0;
}

bool uses(const FuzzAction& action, int rank, int id) {
  const uint32_t unused = action.odd_rank == rank ? action.unused : 0;
  return does(action, rank) && ((action.parameters & ~unused) >> id & 1) != 0;
}

FuzzCase draw_case(uint64_t seed, FuzzWorld world, GradientTransport transport) {
  return Drawing(seed, world, transport).draw();
}

}  // namespace fusedbun::testing
