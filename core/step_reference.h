#pragma once
// The optimizer in tensor operations: the definition that the fused passes are tested against, and the file to read in
// order to learn Fusedbun. Works for every option, device and floating point type; it makes temporaries freely.
//
// Same contract as segment_step.h, for one segment: begin, absorb, finish. It differs in two things: the parameter it
// steps is of the arithmetic's type (a bfloat16 parameter's master), and it never writes to the gradient.
//
// Thread safety: distinct segments may be stepped at the same time.
#include "fusedbun/core/segment_step.h"

namespace fusedbun {

void reference_begin(SegmentStep& step, SegmentState& state, const Options& options);
void reference_absorb(const torch::Tensor& column_totals, const RowRange& range,
                      const StepScalars& scalars, SegmentState& state, const Options& options);
void reference_finish(SegmentStep& step, SegmentState& state, const Options& options);

}  // namespace fusedbun
