#include "fusedbun/launcher/model/cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "fusedbun/launcher/model/autocast.h"

namespace fusedbun::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The gradients are multiplied by this until backward() divides it out: sums over some tokens stay below float16's largest number.
double factor_of(at::ScalarType products) {
  return products == at::kHalf ? 1.0 / 64 : 1;
}

at::ScalarType type_of_products(const Tensor& hidden, const Tensor& weight) {
  const AutocastState autocast = AutocastState::of_this_thread(hidden.device().type());
  return autocast.enabled ? autocast.type : weight.scalar_type();
}

Tensor divisor_of(const Tensor& targets, std::optional<double> divisor) {
  if (!divisor) return targets.ge(0).sum().to(at::kFloat);
  return at::full({}, *divisor, targets.options().dtype(at::kFloat));
}

struct Wanted {
  bool hidden = false;
  bool weight = false;
};

struct Results {
  Tensor sum;       ///< of the cross entropies
  Tensor d_hidden;  ///< of the sum; undefined where it is not wanted
  Tensor d_weight;
};

// In place: logits [n, vocab] in float32 become the gradient of the sum of cross entropies, which is added to `sum`.
void to_gradient(Tensor& logits, const Tensor& targets, const Tensor& counts, Tensor& sum) {
  const Tensor index = targets.clamp_min(0).unsqueeze(1);
  logits = at::log_softmax(logits, 1);
  sum.sub_((logits.gather(1, index).squeeze(1) * counts).sum());
  logits.exp_();
  logits.scatter_add_(1, index, at::full_like(index, -1, logits.options()));
  logits.mul_(counts.unsqueeze(1));
}

// `type`: of the products.
Results evaluate(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                 at::ScalarType type, int64_t logit_bytes, const Wanted& wanted) {
  const int64_t tokens = hidden.size(0), vocab = weight.size(0);
  const int64_t at_once = std::clamp<int64_t>(
      logit_bytes / (vocab * static_cast<int64_t>(sizeof(float))), 1, std::max<int64_t>(1, tokens));
  const Tensor w = weight.to(type);
  const auto float32 = hidden.options().dtype(at::kFloat);
  const double factor = factor_of(type);
  Results results{.sum = at::zeros({}, float32), .d_hidden = {}, .d_weight = {}};
  if (wanted.hidden) results.d_hidden = at::empty_like(hidden);
  if (wanted.weight) results.d_weight = at::zeros_like(weight, at::MemoryFormat::Contiguous);
  for (int64_t first = 0; first < tokens; first += at_once) {
    const int64_t count = std::min(at_once, tokens - first);
    const Tensor x = hidden.narrow(0, first, count).to(type);
    const Tensor target = targets.narrow(0, first, count);
    const Tensor counts = target.ge(0).to(at::kFloat);
    Tensor logits = at::linear(x, w).to(at::kFloat);
    if (!wanted.hidden && !wanted.weight) {
      const Tensor index = target.clamp_min(0).unsqueeze(1);
      results.sum.sub_((at::log_softmax(logits, 1).gather(1, index).squeeze(1) * counts).sum());
      continue;
    }
    to_gradient(logits, target, counts, results.sum);
    const Tensor gradient = factor == 1 ? logits.to(type) : logits.mul_(factor).to(type);
    if (wanted.hidden) results.d_hidden.narrow(0, first, count).copy_(at::mm(gradient, w));
    if (!wanted.weight) continue;
    if (results.d_weight.scalar_type() == type) {
      results.d_weight.addmm_(gradient.t(), x);
    } else {
      results.d_weight.add_(at::mm(gradient.t(), x));
    }
  }
  return results;
}

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                        const Tensor& targets, int64_t logit_bytes, std::optional<double> divisor) {
    const at::ScalarType type = type_of_products(hidden, weight);
    // What is cast here is cast once.
    const Autocast off(hidden.device().type(), AutocastState{.enabled = false});
    const Wanted wanted{.hidden = hidden.requires_grad(), .weight = weight.requires_grad()};
    Results results = evaluate(hidden, weight, targets, type, logit_bytes, wanted);
    const Tensor count = divisor_of(targets, divisor);
    context->save_for_backward({results.d_hidden, results.d_weight, count * factor_of(type)});
    return results.sum / count;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor scale = gradients[0] / saved[2];
    const auto scaled = [&](const Tensor& sum) {
      return sum.defined() ? sum * scale.to(sum.scalar_type()) : Tensor();
    };
    return {scaled(saved[0]), scaled(saved[1]), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                            int64_t logit_bytes, std::optional<double> divisor) {
  if (at::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad()))
    return LinearCrossEntropy::apply(hidden, weight, targets, logit_bytes, divisor);
  const at::ScalarType type = type_of_products(hidden, weight);
  const Autocast off(hidden.device().type(), AutocastState{.enabled = false});
  return evaluate(hidden, weight, targets, type, logit_bytes, {}).sum /
         divisor_of(targets, divisor);
}

}  // namespace fusedbun::model
