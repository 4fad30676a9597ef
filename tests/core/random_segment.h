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

/// $FUSEDBUN_TEST_SEED or a fresh one; printed, so that a failure can be replayed.
inline uint64_t test_seed() {
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("FUSEDBUN_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
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

/// Every preset with a second memory that a fused pass covers.
inline std::vector<Options> hessian_options() {
  std::vector<Options> all;
  for (const std::string& name : preset_names()) {
    for (int bits = 0; bits < 16; ++bits) {
      Options options = preset(name, 1e-2);
      options.prepare_hessian = true;
      options.hessian_source = bits & 1 ? HessianSource::raw : HessianSource::same;
      options.use_rms = bits & 2;  // normalised nevertheless
      options.centralize = bits & 4;
      options.bias_correction = bits & 8;
      if (bits & 8 && options.momentum_beta > 0) options.momentum_dtype = MomentumDtype::bf16;
      all.push_back(options);
    }
  }
  return all;
}

inline std::vector<Options> all_fused_options() {
  std::vector<Options> all = fused_options();
  const std::vector<Options> more = hessian_options();
  all.insert(all.end(), more.begin(), more.end());
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
  /// A second moment and its column partials.
  struct Memory {
    std::vector<T> full, row, col, column_maxima;
    std::vector<double> column_sums;

    void resize(const Options& options, const RowRange& range) {
      if (range.is_vector || options.accumulator == Accumulator::full) {
        full.resize(range.elements());
        return;
      }
      if (options.accumulator != Accumulator::mean_col) row.resize(range.rows());
      col.resize(range.columns);
      column_maxima.resize(range.columns);
      column_sums.resize(range.columns);
    }
    fused::MomentMemory<T> rows(int64_t begin, int64_t columns) {
      const auto at = [](auto& values, int64_t index) {
        return values.empty() ? nullptr : values.data() + index;
      };
      fused::MomentMemory<T> memory;
      memory.full = at(full, begin * columns);
      memory.row = at(row, begin);
      memory.col = at(col, 0);
      memory.column_sums = at(column_sums, 0);
      memory.column_maxima = at(column_maxima, 0);
      return memory;
    }
    void clear_partials() {
      std::fill(column_sums.begin(), column_sums.end(), 0.0);
      std::fill(column_maxima.begin(), column_maxima.end(), T{0});
    }
    void absorb(const Options& options, const RowRange& range, double beta) {
      if (col.empty()) return;
      if (options.accumulator == Accumulator::sm3) {
        col = column_maxima;
      } else {
        cpu_absorb_sums(column_sums.data(), range, beta, col.data());
      }
    }
  };

  Options options;
  RowRange range;
  std::vector<T> parameter, gradient;
  Memory moment, hessian;
  std::vector<uint8_t> momentum;
  double divisor = 3, scale = 0.75;  ///< of the gradient
  const void* summand = nullptr;     ///< the gradient of the given rows

  RandomMatrix(const Options& chosen, int64_t rows, int64_t columns, bool is_vector)
      : options(chosen), range{0, rows, rows, columns, is_vector} {
    const size_t elements = range.elements();
    const bool bf16 = options.momentum_dtype == MomentumDtype::bf16;
    parameter.resize(elements);
    gradient.resize(elements);
    momentum.resize(options.momentum_beta > 0 ? elements * (bf16 ? 2 : sizeof(T)) : 0);
    moment.resize(options, range);
    if (options.prepare_hessian) hessian.resize(options, range);
  }

  int64_t momentum_bytes_per_row() const {
    return static_cast<int64_t>(momentum.size()) / range.rows();
  }

  /// Arguments of a part of the step of rows [begin, end).
  fused::PassArguments<T> rows(bool begins, int64_t begin, int64_t end, int64_t t) {
    const auto at = [](auto& values, int64_t index) {
      return values.empty() ? nullptr : values.data() + index;
    };
    RowRange some = range;
    some.row_begin = begin;
    some.row_end = end;
    StepScalars scalars = step_scalars(options, t, 0.5);
    scalars.gradient_divisor = divisor;
    scalars.gradient_scale = scale;
    auto a = begins ? fused::begin_arguments<T>(some, scalars, options, !momentum.empty())
                    : fused::finish_arguments<T>(some, scalars, options, !momentum.empty());
    a.parameter = at(parameter, begin * range.columns);
    summand = a.gradient = at(gradient, begin * range.columns);
    a.gradients = &summand;
    a.gradient_count = 1;
    a.momentum = at(momentum, begin * momentum_bytes_per_row());
    a.moment = moment.rows(begin, range.columns);
    a.hessian = hessian.rows(begin, range.columns);
    return a;
  }

  /// One step of the whole in the given parts (row boundaries, first 0, last n).
  void step(int64_t t, const std::vector<int64_t>& boundaries, const CpuExecution& execution) {
    moment.clear_partials();
    hessian.clear_partials();
    for (size_t i = 1; i < boundaries.size(); ++i) {
      cpu_begin(rows(/*begins=*/true, boundaries[i - 1], boundaries[i], t), nullptr, execution);
    }
    const double beta = step_scalars(options, t, 0.5).beta;
    moment.absorb(options, range, beta);
    hessian.absorb(options, range, beta);
    if (moment.col.empty() || options.denominator == Denominator::local) return;
    for (size_t i = 1; i < boundaries.size(); ++i) {
      cpu_finish(rows(/*begins=*/false, boundaries[i - 1], boundaries[i], t), nullptr, execution);
    }
  }
};

}  // namespace fusedbun
