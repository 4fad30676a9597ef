#pragma once
// The limit that memory sets to an optimizer's step: a loop that reads and writes in place exactly the arrays that the
// step reads and writes, with next to no arithmetic. Timed in the same run as the step, on the same arrays.
//
// Thread safety: distinct ranges may be passed over at the same time.
#include <cstdint>

#include "fusedbun/core/options.h"

namespace fusedbun::bench {

/// The arrays of a step, element by element; null ones are not there.
struct Streams {
  float* parameter = nullptr;   ///< read and written: the parameter, or its float32 master
  uint16_t* rounded = nullptr;  ///< written: a bfloat16 parameter; read too where it has no master
  const float* gradient = nullptr;          ///< read
  const uint16_t* bf16_gradient = nullptr;  ///< read instead
  float* momentum = nullptr;                ///< read and written
  uint16_t* bf16_momentum = nullptr;        ///< read and written instead
  float* full = nullptr;                    ///< read and written

  /// Bytes moved per element.
  int bytes() const;
  Streams from(int64_t element) const;
};

void pass_over(const Streams& streams, int64_t count);

}  // namespace fusedbun::bench
