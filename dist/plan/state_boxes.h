#pragma once
// Where the rows that a rank owns lie in whole tensors: as boxes, which is how files of tensors cut them.
//
// A range of rows is a box of its tensor, except for stacked matrices ([layers, experts, n, m] with matrix_view = last_two), whose
// ranges may begin and end inside an index of the first dimension: those are several boxes, one after the other in memory.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <vector>

#include "fusedbun/dist/plan/parameter_spec.h"

namespace fusedbun::plan {

/// What a tensor has one entry for: each element of the parameter (values, momentum), each row of its matrices, or each column.
enum class StateAxis : uint8_t { element, row, column };

/// The shape of the whole tensor: the parameter's own; without its columns; without its rows (for a parameter that is one
/// matrix, [m]; for a stack, [matrices..., m]).
std::vector<int64_t> state_shape(const ParameterSpec& parameter, StateAxis axis);

struct Box {
  std::vector<int64_t> offsets;  ///< of its first entry in the whole tensor
  std::vector<int64_t> shape;
  int64_t begin = 0;  ///< entries before it in the memory of the range
  int64_t entries = 0;
};

/// The boxes of a range of rows, in order of memory, that together are all its entries. Of `column`: the columns of the range's
/// matrices, all of them.
std::vector<Box> boxes_of(const ParameterSpec& parameter, const RowRange& range, StateAxis axis);

}  // namespace fusedbun::plan
