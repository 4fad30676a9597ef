#pragma once
// Reductions of host memory, element by element in rank order: ((part 0 + part 1) + part 2) + ...
// All host backends use these, so that a sum has the same bits whatever carried it.
//
// Thread safety: pure functions of their arguments.
#include <cstdint>
#include <span>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// output[i] = parts[0][i] op parts[1][i] op ..., in that order, for any type and operation that all_reduce takes;
/// parts[r] and `output` hold `count` elements of `type`. There is at least one part; `output` may be one of the parts
/// but must not overlap one partly.
void reduce_in_rank_order(ReduceOp op, DataType type, std::span<const void* const> parts,
                          void* output, int64_t count);

}  // namespace fusedbun::comm
