#pragma once
// The output layer and the cross entropy in one operation, some tokens at a time: logits [tokens, vocab], which for a vocabulary of 50,000 to
// 150,000 are larger than everything else that a small model keeps, are never there whole, neither for the loss nor for its gradient (the
// idea: Wijmans et al., Cut Your Losses, 2024; Liger Kernel's FusedLinearCrossEntropy).
//
// Thread safety: as autograd.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "fusedbun/launcher/model/model_shape.h"

namespace fusedbun::model {

/// Sum of the cross entropies in nats of the `targets` [n], int64, that are not negative, given logits = hidden [n, width] · weight [vocab,
/// width] transposed, divided by `divisor`, or without one by their number (NaN if there is none): a float32 scalar; probabilities are
/// evaluated in float32. Under autocast the products are in its type. The gradients of both factors are computed in the forward pass, where the logits are, so backward() multiplies them alone.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets, int64_t logit_bytes = kLogitBytes,
                                std::optional<double> divisor = {});

}  // namespace fusedbun::model
