#include "fusedbun/launcher/model/activation_checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "fusedbun/launcher/model/autocast.h"

namespace fusedbun::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kHeld = "block";

/// What the backward pass needs beside the input.
struct Held : torch::CustomClassHolder {
  Held(CheckpointedBlock block_, const AutocastState& autocast_)
      : block(std::move(block_)), autocast(autocast_) {}
  CheckpointedBlock block;
  AutocastState autocast;  ///< of the forward pass
};

class Checkpointed : public torch::autograd::Function<Checkpointed> {
 public:
  /// `always` requires a gradient, so that there is a backward pass for the block's parameters where the input needs none.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor&,
                            const c10::intrusive_ptr<torch::CustomClassHolder>& held) {
    context->save_for_backward({input});
    context->saved_data[kHeld] = c10::IValue::make_capsule(held);
    // Gradient mode is off, so autocast keeps no cast that is made here: it would have no gradient for who finds it.
    return static_cast<Held&>(*held).block(input);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor saved = context->get_saved_variables()[0];
    const auto capsule = context->saved_data[kHeld].toCapsule();
    const Held& with = static_cast<Held&>(*capsule);
    const bool wants_gradient = context->needs_input_grad(0);
    const at::Tensor input = saved.detach().requires_grad_(wants_gradient);
    at::Tensor output;
    {
      const at::AutoGradMode with_gradients(true);
      const Autocast scope(input.device().type(), with.autocast);
      output = with.block(input);
    }
    torch::autograd::backward({output}, {gradients[0]});
    return {wants_gradient ? input.grad() : at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor checkpointed(CheckpointedBlock block, const at::Tensor& input) {
  if (!at::GradMode::is_enabled()) return block(input);
  const at::Tensor always = at::empty({0}, input.options().dtype(at::kFloat)).requires_grad_();
  const auto held = c10::make_intrusive<Held>(std::move(block),
                                              AutocastState::of_this_thread(input.device().type()));
  return Checkpointed::apply(input, always, c10::intrusive_ptr<torch::CustomClassHolder>(held));
}

}  // namespace fusedbun::model
