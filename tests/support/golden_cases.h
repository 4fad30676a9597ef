#pragma once
// Golden cases: exact inputs and expected outputs of the optimizer, read from a folder of the format in
// tests/golden/README.md. Any such folder will do; shapes, steps, options and counts come from the files.
//
// Invariants: 1. A case is read whole or not at all: an unknown option, enumerator or state name is an error, never a
// skip. 2. Options has centralize_single_column set, as the cases take centralisation literally.
//
// Thread safety: values; reading is for one thread.
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/core/row_range.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun::golden {

/// Inputs: initial parameters, and per step a gradient and a Hessian diagonal for each. Numbers are float32 values.
struct Stream {
  std::string name;
  std::vector<std::vector<int64_t>> shapes;                 ///< [parameter]
  std::vector<std::vector<double>> initial;                 ///< [parameter], row-major
  std::vector<std::vector<std::vector<double>>> gradients;  ///< [step - 1][parameter]
  std::vector<std::vector<std::vector<double>>> hessians;   ///< [step - 1][parameter]; may be empty
};

/// What a run in one precision must give.
struct Expected {
  std::map<int, std::vector<std::vector<double>>>
      parameters;  ///< by step, 1-based: [parameter of the case]
  std::vector<std::map<std::string, std::vector<double>>>
      state;  ///< [parameter of the case], by name; may be empty
};

enum class Precision { f64, f32 };

struct Case {
  std::string id;  ///< "file: id"
  std::shared_ptr<const Stream> stream;
  std::vector<int> parameters;  ///< indices into the stream's parameters
  Options options;
  int steps = 0;
  std::map<Precision, Expected> expected;  ///< f64 always, f32 mostly

  /// Inputs of the case's k-th parameter as tensors of its shape; `step` is 1-based.
  torch::Tensor initial(int k, Precision precision) const;
  torch::Tensor gradient(int step, int k, Precision precision) const;
  /// Undefined where the stream has none.
  torch::Tensor hessian_diagonal(int step, int k, Precision precision) const;
};

/// $FUSEDBUN_GOLDEN_DIR, or the repository's own tests/golden.
std::filesystem::path directory();

/// All cases of the folder, in order of file name. Throws DataError naming file and case for what it cannot read, and
/// for a folder without cases.
std::vector<Case> read_cases(const std::filesystem::path& folder);

torch::ScalarType scalar_type(Precision precision);

/// The state's tensors by the names of the cases: momentum_buffer, exp_avg_sq or exp_avg_sq.row and .col,
/// exp_hessian...
std::map<std::string, torch::Tensor> named_state(const SegmentState& state);

/// Compares `parameters` (the case's, in its order) with what is expected after `step` (1-based), at the tolerance of
/// the README. Nothing expected there, or equal: nullopt; else a sentence that names case, step, parameter and
/// element.
std::optional<std::string> compare_parameters(const Case& golden, Precision precision, int step,
                                              const std::vector<torch::Tensor>& parameters);

/// Compares the state after the last step of rows `range` of the case's k-th parameter, all tensors of it; the names
/// must be the expected ones. Parameters without an expected state compare equal.
std::optional<std::string> compare_state(const Case& golden, Precision precision, int k,
                                         const RowRange& range, const SegmentState& state);

/// Runs the case with Fusedbun as a user would, on `device`, and compares all that it leaves; returns the first mismatch. `before_looking` is
/// called before the parameters are read.
std::optional<std::string> run_fusedbun(const Case& golden, Precision precision,
                                        at::Device device = at::kCPU,
                                        const std::function<void()>& before_looking = {});

}  // namespace fusedbun::golden
