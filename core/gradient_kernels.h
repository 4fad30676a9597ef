#pragma once
// The loops over gradients and rows outside the fused pass: the test for finite squares, the copy that makes this test on its way, the
// sum of several gradients in a fixed order, and updates that travel rounded. They are compiled for the same instruction sets as the fused
// pass (step_cpu_variants.h).
//
// The test is on g·g in the type of the arithmetic (float64 for f64, else float32), which overflows before g does: a gradient whose
// square is inf would spoil the second moment although g itself is a number.
//
// Invariant: no bit of a result depends on the instruction set or on the number of threads.
//
// Thread safety: pure functions; calls that write distinct memory may run at the same time.
#include <cstdint>
#include <span>

#include "fusedbun/core/cpu_execution.h"
#include "fusedbun/core/element_type.h"

namespace fusedbun {

/// True if every g·g of `count` elements is finite.
bool squares_are_finite(ElementType type, const void* values, int64_t count,
                        InstructionSet set = best_instruction_set());
template <class T>  // float, double
bool squares_are_finite(const T* values, int64_t count);

/// Copies `count` elements and returns true if every g·g of the source is finite. The ranges do not overlap. The types are equal, or
/// the copy goes from f32 to bf16 (rounded to nearest even; NaN becomes the quiet one) or from bf16 or f16 to f32 (exact). A copy of
/// 1 MiB and more between equal types goes past the caches: it does not read its destination first.
bool copy_and_test(ElementType source_type, const void* source, ElementType destination_type,
                   void* destination, int64_t count, InstructionSet set = best_instruction_set());

/// sum[i] = parts[0][i] + parts[1][i] + ..., added in that order in T. There is at least one part. T is double for parts of f64, and
/// float for parts of f32, bf16 and f16, which are widened exactly first. `sum` may be one of the parts if their types are equal, but
/// must not overlap one partly.
template <class T>
void sum_in_order(std::span<const void* const> parts, ElementType type, T* sum, int64_t count,
                  InstructionSet set = best_instruction_set());
/// The same on all threads of `execution`, and returns the sum of squares of the sum, in float64. The length alone decides in which
/// order the squares are added.
template <class T>
double sum_in_order_with_squares(std::span<const void* const> parts, ElementType type, T* sum,
                                 int64_t count, const CpuExecution& execution = {});

/// update[i] = bf16(stepped[i] - rows[i]), rounded to nearest even, and rows[i] += update[i], in float32. The ranges do not overlap.
void round_update(const float* stepped, float* rows, uint16_t* update, int64_t count,
                  const CpuExecution& execution = {});
/// rows[i] += update[i]: after it these rows have the bits of those that round_update left.
void apply_update(const uint16_t* update, float* rows, int64_t count,
                  const CpuExecution& execution = {});

/// The sum of squares of `count` values that lie in rows of `columns`, the last row maybe shorter, as the fused pass adds them up
/// (sum_order.h): each row, then the rows' sums. T = float or double.
template <class T>
double sum_of_squares(const T* values, int64_t count, int64_t columns);

}  // namespace fusedbun
