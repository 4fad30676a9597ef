#include "fusedbun/tests/dist/step/layout_fuzz_expected.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <set>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/tests/dist/step/layout_fuzz_values.h"

namespace fusedbun::testing {
namespace {

using Elements = std::vector<double>;

/// One parameter's p.grad on one rank.
struct Gradient {
  std::optional<Elements> elements;
  std::set<int64_t> guarded;  ///< the passes under no_sync() that stand in it
  bool unguarded = false;     ///< a pass outside of a guard stands in it
  bool by_hand = false;       ///< no pass, but the program's own tensor

  void forget_passes() {
    guarded.clear();
    unguarded = by_hand = false;
  }
};

struct Rank {
  int guards = 0;
  std::vector<Gradient> gradients;  // [parameter]
  bool wrote_sent = false;
};

class Alone {
 public:
  explicit Alone(const FuzzCase& c) : case_(c), ranks_(static_cast<size_t>(c.ranks)) {
    for (Rank& rank : ranks_) rank.gradients.resize(c.parameters.size());
    for (const FuzzParameter& p : c.parameters) tensors_.push_back(parameter_of(c, p, 0));
    joined_.assign(c.parameters.size(), false);
    by_messages_.assign(c.parameters.size(), false);
    lr_pins_.resize(c.groups.size());
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (int g = 0; g < static_cast<int>(c.groups.size()); ++g) {
      if (c.groups[g].joins_at == 0) groups.push_back(make_group(g));
    }
    optimizer_ = std::make_unique<Fusedbun>(groups, FusedbunOptions(c.groups[0].options()));
    for (const FuzzGroup& group : c.groups) {
      if (group.joins_at == 0) join(group_count_++);
    }
    clip_ = c.max_grad_norm;
  }

  std::vector<ExpectedStep> run() {
    std::vector<ExpectedStep> expected;
    for (size_t step = 0; step < case_.steps.size(); ++step) {
      for (; group_count_ < case_.groups.size() &&
             case_.groups[group_count_].joins_at <= static_cast<int>(step);
           ++group_count_) {
        optimizer_->add_param_group(make_group(static_cast<int>(group_count_)));
        join(group_count_);
      }
      step_ = &case_.steps[step];
      const auto& actions = step_->actions;
      for (size_t a = 0; a < actions.size(); ++a) act(actions[a], step, a);
      expected.push_back(take_step(*step_));
    }
    return expected;
  }

 private:
  torch::optim::OptimizerParamGroup make_group(int g) const {
    std::vector<at::Tensor> members;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (case_.parameters[p].group == g) members.push_back(tensors_[p]);
    }
    return {members, std::make_unique<FusedbunOptions>(case_.groups[g].options())};
  }

  Options& options_of(size_t group) {
    return static_cast<FusedbunOptions&>(optimizer_->param_groups()[group].options()).values();
  }

  void join(size_t group) {
    scheduled_lr_.push_back(case_.groups[group].lr);
    std::vector<size_t> batch;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (case_.parameters[p].group != static_cast<int>(group)) continue;
      joined_[p] = true;
      if (!case_.parameters[p].frozen) batch.push_back(p);
    }
    // The initial groups are one batch.
    if (case_.groups[group].joins_at == 0) {
      initial_.insert(initial_.end(), batch.begin(), batch.end());
      batch = initial_;
    }
    choose_way(batch);
  }

  // Parameters that join together travel alike: over messages, where wire_bf16 and updates_bf16 round, or in shared memory, where nothing does.
  void choose_way(const std::vector<size_t>& batch) {
    using plan::GradientTransport;
    bool messages = case_.transport == GradientTransport::point_to_point;
    if (case_.transport == GradientTransport::automatic) {
      messages = !case_.host_window;
      for (const size_t p : batch) messages = messages || !tensors_[p].is_contiguous();
    }
    for (const size_t p : batch) by_messages_[p] = messages && case_.ranks > 1;
  }

  // ---- what the program does ---------------------------------------------------------------------

  void act(const FuzzAction& action, size_t step, size_t index) {
    for (int r = 0; r < case_.ranks; ++r) {
      if (does(action, r)) act_on_rank(action, r, key_of(step, index));
    }
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if ((action.parameters >> case_.parameters[p].id & 1) != 0) {
        change_parameter(action, p, key_of(step, index));
      }
    }
    if (action.act == Act::write) follow_masters();
    if (action.act == Act::set_lr) {
      for (double& lr : scheduled_lr_) lr *= action.value;
    }
  }

  void act_on_rank(const FuzzAction& action, int r, int64_t key) {
    Rank& rank = ranks_[r];
    if (action.act == Act::begin_guard) ++rank.guards;
    if (action.act == Act::end_guard) --rank.guards;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      Gradient& gradient = rank.gradients[p];
      if (action.act == Act::zero_grad && joined_[p] && gradient.elements) {
        gradient.forget_passes();
        std::ranges::fill(*gradient.elements, 0);
        if (action.value == 1) gradient.elements.reset();
      }
      if (!joined_[p] || !tensors_[p].requires_grad()) continue;
      if (!uses(action, r, case_.parameters[p].id)) continue;
      if (action.act == Act::pass) {
        for (int run = 0; run < action.value; ++run) {
          run_pass(gradient, gradient_of(action, p, r, key), case_.parameters[p].type,
                   rank.guards > 0, 2 * key + run);
        }
      } else if (action.act == Act::set_grad) {
        gradient.forget_passes();
        gradient.elements = set_gradient_of(action, p, r, key);
        gradient.by_hand = true;
      } else if (action.act == Act::drop_grad) {
        gradient = {};
      } else if (action.act == Act::write_sent && gradient.elements) {
        rank.wrote_sent = rank.wrote_sent || !gradient.elements->empty();
      } else if (action.act == Act::scale_grad && gradient.elements) {
        for (double& element : *gradient.elements) {
          element = rounded_to(case_.parameters[p].type, element * action.value);
        }
      }
    }
  }

  static void run_pass(Gradient& gradient, const Elements& added, ElementType type, bool guarded,
                       int64_t pass) {
    if (!gradient.elements) {
      gradient.elements = added;
    } else {
      for (size_t i = 0; i < added.size(); ++i) {
        double& element = (*gradient.elements)[i];
        element = rounded_to(type, element + added[i]);
      }
    }
    guarded ? (void)gradient.guarded.insert(pass) : (void)(gradient.unguarded = true);
  }

  void poison(const FuzzAction& action, int rank, Elements& elements) const {
    if (action.poisoned_rank == rank && !elements.empty()) elements.back() = std::nan("");
  }

  Elements gradient_of(const FuzzAction& action, size_t p, int rank, int64_t key) const {
    const FuzzParameter& parameter = case_.parameters[p];
    Elements sum = values(case_, parameter, rank, Purpose::gradient, key);
    poison(action, rank, sum);
    scale(sum, step_->loss_scale);
    if (!parameter.tied) return sum;
    Elements second = values(case_, parameter, rank, Purpose::tied_gradient, key);
    scale(second, step_->loss_scale);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = rounded_to(parameter.type, sum[i] + second[i]);
    return sum;
  }

  Elements set_gradient_of(const FuzzAction& action, size_t p, int rank, int64_t key) const {
    Elements elements = values(case_, case_.parameters[p], rank, Purpose::set_gradient, key);
    poison(action, rank, elements);
    scale(elements, step_->loss_scale);
    return elements;
  }

  // By a power of two: exact.
  static void scale(Elements& elements, double factor) {
    for (double& element : elements) element *= factor;
  }

  void change_parameter(const FuzzAction& action, size_t p, int64_t key) {
    const at::NoGradGuard no_grad;
    if (action.act == Act::unfreeze && joined_[p]) tensors_[p].requires_grad_();
    if (!joined_[p] || case_.parameters[p].frozen) return;
    const bool writes = action.act == Act::write || action.act == Act::write_directly;
    if (!writes && action.act != Act::set_data) return;
    const at::Tensor written = tensor_of(
        case_.parameters[p], values(case_, case_.parameters[p], 0, Purpose::written, key));
    writes ? (void)tensors_[p].copy_(written) : tensors_[p].set_data(written);
  }

  // write_parameters() and every step that is not skipped take what was written for the truth, also of parameters that the
  // step does not use: a master is kept where the parameter is its rounding (the bits lie half a bfloat16 unit apart at
  // most), and written over elsewhere. Fusedbun itself does so only at the parameter's own next step, and would keep the
  // lower bits if a second write brought the old value back.
  void follow_masters() {
    for (const at::Tensor& tensor : tensors_) {
      const auto entry = optimizer_->state().find(tensor.unsafeGetTensorImpl());
      if (entry == optimizer_->state().end()) continue;
      at::Tensor& master = static_cast<FusedbunParamState&>(*entry->second).segment.master;
      if (!master.defined()) continue;
      const at::Tensor written = tensor.detach().to(at::kFloat).contiguous();
      float* kept = master.data_ptr<float>();
      const float* value = written.const_data_ptr<float>();
      for (int64_t i = 0; i < written.numel(); ++i) {
        const auto apart =
            int64_t{std::bit_cast<int32_t>(kept[i])} - int64_t{std::bit_cast<int32_t>(value[i])};
        if (std::abs(apart) > 0x8000) kept[i] = value[i];
      }
    }
  }

  // ---- the step ----------------------------------------------------------------------------------

  ExpectedStep take_step(const FuzzStep& step) {
    ExpectedStep expected;
    expected.refused = is_refused();
    if (!expected.refused) adopt_unfrozen();
    expected.skipped = !expected.refused && is_skipped();
    if (!expected.refused && !expected.skipped) update(step);
    for (Rank& rank : ranks_) {
      rank.wrote_sent = false;
      for (size_t p = 0; p < tensors_.size(); ++p) {
        // After a refused step the program calls zero_grad.
        if (expected.refused || case_.release != GradientRelease::never) {
          if (joined_[p]) rank.gradients[p] = {};
        }
      }
    }
    if (!expected.refused) enter_step(++job_step_);
    for (size_t p = 0; p < tensors_.size(); ++p) {
      expected.values.push_back(tensors_[p].detach().clone());
      expected.tolerance.push_back(tolerance_of(p));
    }
    return expected;
  }

  void adopt_unfrozen() {
    std::vector<size_t> batch;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (!case_.parameters[p].frozen || !joined_[p] || !tensors_[p].requires_grad()) continue;
      if (adopted_.insert(p).second) batch.push_back(p);
    }
    choose_way(batch);
  }

  // 1 + the passes under a guard that stand in p.grad; without any pass outside of a guard, their number.
  static int64_t passes_of(const Rank& rank) {
    std::set<int64_t> guarded;
    bool others = false;
    for (const Gradient& gradient : rank.gradients) {
      if (!gradient.elements || gradient.elements->empty()) continue;
      guarded.insert(gradient.guarded.begin(), gradient.guarded.end());
      const bool is_zero = std::ranges::all_of(*gradient.elements, [](double x) { return x == 0; });
      others = others || gradient.unguarded || (gradient.by_hand && !is_zero);
    }
    if (guarded.empty()) return 1;
    return static_cast<int64_t>(guarded.size()) + (others ? 1 : 0);
  }

  bool is_refused() const {
    bool refused = false;
    for (const Rank& rank : ranks_) {
      refused = refused || rank.wrote_sent;
      if (case_.divisor == 0) refused = refused || passes_of(rank) != passes_of(ranks_[0]);
    }
    return refused;
  }

  bool is_skipped() const {
    bool skips = false, has_nan = false;
    for (size_t g = 0; g < group_count_; ++g) {
      skips = skips || case_.groups[g].nonfinite == Nonfinite::skip;
    }
    for (const Rank& rank : ranks_) {
      for (const Gradient& gradient : rank.gradients) {
        if (!gradient.elements) continue;
        for (const double element : *gradient.elements) {
          has_nan = has_nan || !std::isfinite(element);
        }
      }
    }
    return skips && has_nan;
  }

  // ((rank 0 + rank 1) + rank 2) ..., in float64 for float64 parameters and in float32 for others; a rank without a gradient
  // adds zeros. Nothing if no rank has one.
  std::optional<Elements> sum_of(size_t p) const {
    const ElementType type = case_.parameters[p].type;
    const bool rounds = case_.wire_bf16 && by_messages_[p] && type == ElementType::f32;
    std::optional<Elements> sum;
    for (const Rank& rank : ranks_) {
      const auto& elements = rank.gradients[p].elements;
      if (!elements) continue;
      if (!sum) sum = Elements(elements->size(), 0.0);
      for (size_t i = 0; i < elements->size(); ++i) {
        const double added =
            rounds ? rounded_to(ElementType::bf16, (*elements)[i]) : (*elements)[i];
        (*sum)[i] = rounded_to(arithmetic(type), (*sum)[i] + added);
      }
    }
    return sum;
  }

  static ElementType arithmetic(ElementType type) {
    return type == ElementType::f64 ? ElementType::f64 : ElementType::f32;
  }

  void update(const FuzzStep& step) {
    double divisor = case_.divisor;
    if (divisor == 0) divisor = static_cast<double>(case_.ranks * passes_of(ranks_[0]));
    divisor *= step.loss_scale;
    std::vector<std::optional<Elements>> averages;
    double squares = 0;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      averages.push_back(sum_of(p));
      if (!averages[p]) continue;
      for (double& element : *averages[p]) {
        squares += (element / divisor) * (element / divisor);
        element = rounded_to(arithmetic(case_.parameters[p].type), element / divisor);
      }
    }
    const double norm = std::sqrt(squares);
    const double factor = clip_ > 0 && norm > clip_ ? clip_ / norm : 1;
    clipped_ = clipped_ || factor != 1;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      tensors_[p].mutable_grad().reset();
      if (!averages[p]) continue;
      FuzzParameter wide = case_.parameters[p];
      wide.type = arithmetic(wide.type);
      if (factor != 1) {
        for (double& element : *averages[p]) {
          element = rounded_to(wide.type, element * rounded_to(wide.type, factor));
        }
      }
      tensors_[p].mutable_grad() = tensor_of(wide, *averages[p]);
    }
    follow_masters();
    for (size_t g = 0; g < group_count_; ++g) {
      options_of(g).lr = lr_pins_[g].value_or(scheduled_lr_[g] * lr_scale_);
    }
    std::vector<at::Tensor> before;
    for (const at::Tensor& tensor : tensors_) before.push_back(tensor.detach().clone());
    optimizer_->step();
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (averages[p] && rounds_updates(p)) round_update(tensors_[p], before[p]);
    }
  }

  bool rounds_updates(size_t p) const {
    return case_.updates_bf16 && by_messages_[p] && case_.parameters[p].type == ElementType::f32;
  }

  static void round_update(const at::Tensor& tensor, const at::Tensor& before) {
    const at::NoGradGuard no_grad;
    const at::Tensor change = (tensor - before).to(at::kBFloat16).to(at::kFloat);
    tensor.copy_(before + change);
  }

  // ---- changes -----------------------------------------------------------------------------------

  // In order of (effective step, revision); the list is in order of revision.
  void enter_step(int64_t job_step) {
    for (const FuzzChange& change : case_.changes) {
      if (change.effective == job_step) apply(change);
    }
  }

  void apply(const FuzzChange& change) {
    using changes::Field;
    if (change.field == Field::max_grad_norm) clip_ = change.value;
    if (change.field == Field::lr_scale) lr_scale_ = change.value;
    for (size_t g = 0; g < group_count_; ++g) {
      if (change.group >= 0 && change.group != static_cast<int>(g)) continue;
      Options& options = options_of(g);
      if (change.field == Field::learning_rate) lr_pins_[g] = change.value;
      if (change.field == Field::unpin_learning_rate) lr_pins_[g].reset();
      if (change.field == Field::eps) options.eps = change.value;
      if (change.field == Field::beta_decay) options.beta_decay = change.value;
      if (change.field == Field::weight_decay) options.Lambda = change.value;
      if (change.field == Field::momentum_beta) options.momentum_beta = change.value;
      if (change.field == Field::centralize) options.centralize = change.value == 1;
      if (change.field == Field::use_rms) options.use_rms = change.value == 1;
    }
  }

  // core promises the same bits where no sum over rows enters: maxima, all entries, vectors. Elsewhere sums of float64 have
  // another order, 1e-16 each; rounded to float32 that may fall on another side, and bfloat16 parameters round once more.
  double tolerance_of(size_t p) const {
    const FuzzParameter& parameter = case_.parameters[p];
    const FuzzGroup& group = case_.groups[static_cast<size_t>(parameter.group)];
    const Options options = group.options();
    const bool sums_rows =
        parameter.shape.size() > 1 &&
        (options.accumulator == Accumulator::mean || options.accumulator == Accumulator::mean_col);
    // Norms of parameters and gradients are sums as well, on one rank too.
    const bool has_norm = options.scale_by_parameter_rms || clipped_;
    if (!has_norm && (case_.ranks == 1 || !sums_rows)) return 0;
    if (parameter.type == ElementType::f64 && !group.bf16_momentum) return 1e-12;
    // A momentum that is stored in bfloat16 rounds to 2^-9 of itself, and a step is a tenth of the parameters or less.
    if (parameter.type == ElementType::f64) return 1e-3;
    if (parameter.type == ElementType::bf16) return 0x1p-7;
    if (rounds_updates(p)) return 1e-3;  // a bit of 2^-8 of a step
    return group.bf16_momentum ? 1e-3 : 5e-6;
  }

  const FuzzCase& case_;
  const FuzzStep* step_ = nullptr;
  std::vector<Rank> ranks_;
  std::vector<at::Tensor> tensors_;  // [parameter]
  std::vector<bool> joined_, by_messages_;
  std::vector<size_t> initial_;
  std::set<size_t> adopted_;  ///< once frozen, trained now
  std::unique_ptr<Fusedbun> optimizer_;
  size_t group_count_ = 0;
  std::vector<std::optional<double>> lr_pins_;
  std::vector<double> scheduled_lr_;
  double lr_scale_ = 1, clip_ = 0;
  bool clipped_ = false;  ///< a factor was computed from a sum, from here on
  int64_t job_step_ = 0;
};

}  // namespace

std::vector<ExpectedStep> run_alone(const FuzzCase& fuzz_case) {
  return Alone(fuzz_case).run();
}

}  // namespace fusedbun::testing
