#pragma once
// The fused step on CPUs: one pass over plain memory that reads gradient, momentum and parameter once and writes
// momentum and parameter once (recommended: 20 bytes per parameter in float32). No torch and no threads of its own.
//
// Invariants: 1. The bits of parameters, momentum, full and row statistics depend on the row alone: not on the
// instruction set, nor on which other rows are in the segment. Nothing is contracted or approximated, row sums are
// float64 in 16 lanes (column j in lane j mod 16) that are added in one fixed tree. 2. Column sums are added row
// after row within a band of rows, then band after band; the segment's shape alone decides the bands, so the sums do
// not depend on the number of threads, only on where the segment starts. Column maxima are exact. 3. The gradient is
// only read.
//
// Thread safety: distinct segments may be stepped at the same time.
#include "fusedbun/core/cpu_execution.h"
#include "fusedbun/core/fused_pass.h"

namespace fusedbun {

/// The parts of a step (segment_step.h), T = float or double, on what begin_arguments (finish_arguments) and the caller have
/// set. The update sets `*parameter_sum_of_squares`, if that is given, to the sum of squares of the new parameter.
template <class T>
void cpu_begin(fused::PassArguments<T> arguments, double* parameter_sum_of_squares = nullptr,
               const CpuExecution& execution = {});
template <class T>
void cpu_finish(fused::PassArguments<T> arguments, double* parameter_sum_of_squares = nullptr,
                const CpuExecution& execution = {});

/// Takes the sums of all rows of the matrix into its stored column means: c := beta·c + (1-beta)·sum/rows_total.
template <class T>
void cpu_absorb_sums(const double* column_sums, const RowRange& range, double beta, T* col);

}  // namespace fusedbun
