#pragma once
// Random lists of parameters with gradients, and the one-process optimizer stepped on them: what sharded runs are compared
// with.
#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::testing {

/// Shapes that meet every kind of slice: matrices to be split, small ones kept whole, vectors, scalars, n×1, 1×m, 4-D.
std::vector<std::vector<int64_t>> random_shapes(uint64_t seed);

/// gradients[step][parameter]; some undefined (unused in that step) if `with_unused`; the values cover zeros, tiny and large
/// ones.
using Gradients = std::vector<std::vector<at::Tensor>>;
std::vector<at::Tensor> random_parameters(const std::vector<std::vector<int64_t>>& shapes,
                                          at::ScalarType type, uint64_t seed);
Gradients random_gradients(const std::vector<std::vector<int64_t>>& shapes, at::ScalarType type,
                           int steps, bool with_unused, uint64_t seed);

/// Clones that require gradients, as {"p0", "p1", ...}.
torch::OrderedDict<std::string, torch::Tensor> as_model(const std::vector<at::Tensor>& parameters);
std::vector<at::Tensor> values_of(const torch::OrderedDict<std::string, torch::Tensor>& model);

/// A one-process Fusedbun taken through `gradients`; the optimizer is left in `inspect` if given.
std::vector<at::Tensor> train_alone(
    const std::vector<at::Tensor>& parameters, const Gradients& gradients,
    const FusedbunOptions& options,
    const std::function<void(Fusedbun&, std::vector<at::Tensor>&)>& inspect = nullptr);

/// Compares every owned segment's state of a sharded optimizer with the one-process state, bit for bit or, with a
/// tolerance, relative to the largest entry. Returns the first difference, or nothing.
std::string state_difference(ShardedFusedbun& sharded, Fusedbun& alone,
                             const std::vector<at::Tensor>& alone_parameters, double tolerance);

uint64_t seed_from_environment(uint64_t fallback);

}  // namespace fusedbun::testing
