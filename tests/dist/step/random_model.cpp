#include "random_model.h"

#include <cstdlib>
#include <random>

namespace fusedbun::testing {

std::vector<std::vector<int64_t>> random_shapes(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto up_to = [&](int64_t n) { return 1 + static_cast<int64_t>(random() % n); };
  std::vector<std::vector<int64_t>> shapes = {{40, up_to(50)}, {up_to(30)}, {},    {up_to(20), 1},
                                              {1, up_to(30)},  {70, 33},    {3, 5}};
  for (int64_t extra = up_to(4); extra > 0; --extra) {
    switch (random() % 3) {
      case 0:
        shapes.push_back({up_to(60), up_to(40)});
        break;
      case 1:
        shapes.push_back({up_to(100)});
        break;
      default:
        shapes.push_back({up_to(9), up_to(4), up_to(3), up_to(3)});
        break;
    }
  }
  std::shuffle(shapes.begin(), shapes.end(), random);
  return shapes;
}

std::vector<at::Tensor> random_parameters(const std::vector<std::vector<int64_t>>& shapes,
                                          at::ScalarType type, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  std::vector<at::Tensor> parameters;
  for (const auto& shape : shapes) parameters.push_back(at::randn(shape, generator, type));
  return parameters;
}

Gradients random_gradients(const std::vector<std::vector<int64_t>>& shapes, at::ScalarType type,
                           int steps, bool with_unused, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed + 1);
  std::mt19937_64 random(seed + 2);
  Gradients gradients(steps);
  for (auto& step : gradients) {
    for (const auto& shape : shapes) {
      if (with_unused && random() % 5 == 0) {
        step.emplace_back();
        continue;
      }
      at::Tensor g = at::randn(shape, generator, type);
      g.masked_fill_(at::rand(shape, generator, type) < 0.2, 0);
      if (random() % 4 == 0) g.mul_(1e-7);
      step.push_back(g);
    }
  }
  return gradients;
}

torch::OrderedDict<std::string, torch::Tensor> as_model(const std::vector<at::Tensor>& parameters) {
  torch::OrderedDict<std::string, torch::Tensor> model;
  for (const at::Tensor& parameter : parameters) {
    model.insert("p" + std::to_string(model.size()),
                 parameter.detach().clone(at::MemoryFormat::Preserve).requires_grad_());
  }
  return model;
}

std::vector<at::Tensor> values_of(const torch::OrderedDict<std::string, torch::Tensor>& model) {
  std::vector<at::Tensor> values;
  for (const auto& item : model) values.push_back(item.value().detach().clone());
  return values;
}

std::vector<at::Tensor> train_alone(
    const std::vector<at::Tensor>& parameters, const Gradients& gradients,
    const FusedbunOptions& options,
    const std::function<void(Fusedbun&, std::vector<at::Tensor>&)>& inspect) {
  std::vector<at::Tensor> tensors;
  for (const auto& item : as_model(parameters)) tensors.push_back(item.value());
  Fusedbun optimizer(tensors, options);
  for (const auto& step : gradients) {
    for (size_t p = 0; p < tensors.size(); ++p) {
      tensors[p].mutable_grad() = step[p].defined() ? step[p].clone() : at::Tensor();
    }
    optimizer.step();
  }
  if (inspect) inspect(optimizer, tensors);
  std::vector<at::Tensor> values;
  for (const at::Tensor& tensor : tensors) values.push_back(tensor.detach().clone());
  return values;
}

namespace {

std::string difference(const std::string& what, const at::Tensor& sharded, const at::Tensor& alone,
                       double tolerance) {
  if (sharded.defined() != alone.defined()) return what + " is stored on one side only";
  if (!sharded.defined() || at::equal(sharded, alone)) return {};
  const at::Tensor a = sharded.to(at::kDouble), b = alone.to(at::kDouble);
  const double largest = b.abs().max().item<double>();
  const double error = (a - b).abs().max().item<double>();
  if (error <= tolerance * largest) return {};
  return what + " differs by " + std::to_string(error) + " where the largest is " +
         std::to_string(largest);
}

at::Tensor rows_of(const at::Tensor& whole, const RowRange& range) {
  return whole.defined() ? whole.narrow(0, range.row_begin, range.rows()) : whole;
}

// Of all columns those of the matrices in the range, if it is of a stack.
at::Tensor columns_of(const at::Tensor& whole, const RowRange& range) {
  if (!whole.defined() || range.matrix_rows == 0) return whole;
  return whole.narrow(0, range.row_begin / range.matrix_rows * range.columns,
                      range.matrices() * range.columns);
}

}  // namespace

std::string state_difference(ShardedFusedbun& sharded, Fusedbun& alone,
                             const std::vector<at::Tensor>& alone_parameters, double tolerance) {
  for (const auto& owned : sharded.owned_rows()) {
    const at::Tensor& parameter = alone_parameters[std::stoul(owned.name.substr(1))];
    const auto found = alone.state().find(parameter.unsafeGetTensorImpl());
    if (found == alone.state().end()) {
      if (owned.t != 0) return owned.name + " was stepped on one side only";
      continue;
    }
    const auto& state = static_cast<const FusedbunParamState&>(*found->second);
    if (state.step != owned.t) return owned.name + " has another t";
    const SegmentState& a = *owned.state;
    const SegmentState& b = state.segment;
    const auto check = [&](const char* what, const at::Tensor& x, const at::Tensor& y) {
      return difference(owned.name + " " + what, x, y, tolerance);
    };
    for (const std::string& found_difference :
         {check("master", a.master, rows_of(b.master, owned.range)),
          check("momentum", a.momentum_buffer, rows_of(b.momentum_buffer, owned.range)),
          check("full", a.exp_avg_sq.full, rows_of(b.exp_avg_sq.full, owned.range)),
          check("row", a.exp_avg_sq.row, rows_of(b.exp_avg_sq.row, owned.range)),
          check("col", a.exp_avg_sq.col, columns_of(b.exp_avg_sq.col, owned.range)),
          check("hessian full", a.exp_hessian.full, rows_of(b.exp_hessian.full, owned.range)),
          check("hessian row", a.exp_hessian.row, rows_of(b.exp_hessian.row, owned.range)),
          check("hessian col", a.exp_hessian.col, columns_of(b.exp_hessian.col, owned.range))}) {
      if (!found_difference.empty()) return found_difference;
    }
  }
  return {};
}

uint64_t seed_from_environment(uint64_t fallback) {
  const char* seed = std::getenv("FUSEDBUN_TEST_SEED");
  return seed != nullptr ? std::strtoull(seed, nullptr, 10) : fallback;
}

}  // namespace fusedbun::testing
