#pragma once
// Activation checkpointing (Chen et al., 2016): a block keeps its input alone, and what else its backward pass needs is computed once more
// when that pass gets there. Memory of one block instead of all, for one more forward pass. LibTorch's C++ interface has no
// torch.utils.checkpoint; this one works as that with use_reentrant=True: the backward pass of the block runs inside the other one.
//
// Invariants: 1. Gradients are bit for bit those of block(input): the same operations run under the same autocast. 2. Parameters get their
// gradients, and hooks on them run, inside of backward(), as they do otherwise; ShardedFusedbun counts such passes as parts of the
// one around them. 3. Gradient mode and autocast of the caller are as they were.
//
// Thread safety: as autograd: backward may run on its threads.
#include <ATen/core/Tensor.h>

#include <functional>

namespace fusedbun::model {

/// One tensor in, one out.
using CheckpointedBlock = std::function<at::Tensor(const at::Tensor& input)>;

/// block(input). The block is called again in backward, so it must be a function of its input and of its parameters, which stand still
/// until then: nothing kept between calls, and random numbers only of a generator that the block itself has set (dropout.h). What the block
/// refers to must live until backward() has returned. Without gradient mode it is block(input) and nothing more.
at::Tensor checkpointed(CheckpointedBlock block, const at::Tensor& input);

}  // namespace fusedbun::model
