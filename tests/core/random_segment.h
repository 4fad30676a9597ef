#pragma once
// Random segments for tests of the fused CPU step: memory, options and the calls of one step.
//
// Thread safety: each object for one thread.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "fusedbun/core/step_cpu.h"

namespace fusedbun {

/// $FUSEDBUN_SEED or a fresh one; printed, so that a failure can be replayed.
inline uint64_t test_seed() {
  const char* given = std::getenv("FUSEDBUN_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("FUSEDBUN_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

/// Every preset with every combination of its run-time switches and of bf16 momentum.
inline std::vector<Options> fused_options() {
  std::vector<Options> all;
  for (const std::string& name : preset_names()) {
    if (name == "fusedbun" || name == "fusion") continue;  // with all switches: lean, elementwise
    for (int bits = 0; bits < 32; ++bits) {
      Options options = preset(name, 1e-2);
      options.centralize = bits & 1;
      options.use_rms = bits & 2;
      options.Lambda = bits & 4 ? 0.1 : 0;
      options.bias_correction = bits & 8;
      if (bits & 16) {
        if (options.momentum_beta == 0) continue;  // no buffer, no type
        options.momentum_dtype = MomentumDtype::bf16;
      }
      all.push_back(options);
    }
  }
  return all;
}

/// Gradients of all sizes: zeros, values below eps, six decades above.
template <class T>
T random_gradient(std::mt19937_64& random) {
  const uint64_t bits = random();
  const uint64_t kind = bits % 10;
  if (kind == 0) return 0;
  if (kind == 1) return static_cast<T>(5e-9);
  const double fraction = static_cast<double>(bits >> 32) / 4294967296.0;
  const double value = std::ldexp(1 + fraction, static_cast<int>((bits >> 8) % 20) - 16);
  return static_cast<T>(kind < 6 ? value : -value);
}

/// A whole matrix or vector and its state, after no step.
template <class T>
struct RandomMatrix {
  Options options;
  RowRange range;
  std::vector<T> parameter, gradient, full, row, col, column_maxima;
  std::vector<uint8_t> momentum;
  std::vector<double> column_sums;

  RandomMatrix(const Options& chosen, int64_t rows, int64_t columns, bool is_vector)
      : options(chosen), range{0, rows, rows, columns, is_vector} {
    const size_t elements = range.elements();
    const bool bf16 = options.momentum_dtype == MomentumDtype::bf16;
    parameter.resize(elements);
    gradient.resize(elements);
    momentum.resize(options.momentum_beta > 0 ? elements * (bf16 ? 2 : sizeof(T)) : 0);
    if (is_vector || options.accumulator == Accumulator::full) {
      full.resize(elements);
      return;
    }
    if (options.accumulator != Accumulator::mean_col) row.resize(rows);
    col.resize(columns);
    column_maxima.resize(columns);
    column_sums.resize(columns);
  }

  int64_t momentum_bytes_per_row() const {
    return static_cast<int64_t>(momentum.size()) / range.rows();
  }

  /// The step of rows [begin, end).
  FusedStep<T> rows(int64_t begin, int64_t end, int64_t t) {
    const auto at = [](auto& values, int64_t index) {
      return values.empty() ? nullptr : values.data() + index;
    };
    FusedStep<T> step;
    step.parameter = at(parameter, begin * range.columns);
    step.gradient = at(gradient, begin * range.columns);
    step.momentum = at(momentum, begin * momentum_bytes_per_row());
    step.full = at(full, begin * range.columns);
    step.row = at(row, begin);
    step.col = at(col, 0);
    step.column_sums = at(column_sums, 0);
    step.column_maxima = at(column_maxima, 0);
    step.range = range;
    step.range.row_begin = begin;
    step.range.row_end = end;
    step.scalars = step_scalars(options, t, 0.5);
    step.scalars.gradient_divisor = 3;
    step.scalars.gradient_scale = 0.75;
    step.structure = options;
    return step;
  }

  /// One step of the whole in the given parts (row boundaries, first 0, last n).
  void step(int64_t t, const std::vector<int64_t>& boundaries, const CpuExecution& execution) {
    std::fill(column_sums.begin(), column_sums.end(), 0.0);
    std::fill(column_maxima.begin(), column_maxima.end(), T{0});
    for (size_t i = 1; i < boundaries.size(); ++i) {
      cpu_begin(rows(boundaries[i - 1], boundaries[i], t), nullptr, execution);
    }
    if (!col.empty()) {
      if (options.accumulator == Accumulator::sm3) {
        col = column_maxima;
      } else {
        cpu_absorb_sums(column_sums.data(), range, step_scalars(options, t, 0.5).beta, col.data());
      }
    }
    if (col.empty() || options.denominator == Denominator::local) return;
    for (size_t i = 1; i < boundaries.size(); ++i) {
      cpu_finish(rows(boundaries[i - 1], boundaries[i], t), nullptr, execution);
    }
  }
};

}  // namespace fusedbun
