#pragma once
// GradientTable: what the kernels around the step read from a GPU's memory: pieces of gradients and rows on their way into and out of a
// bucket, and what the device decides of a step without the host.
//
// Thread safety: values; the memory is the caller's.
#include <cstdint>

#include "fusedbun/core/gpu/step_table.h"

namespace fusedbun::device {

/// Elements that go from one place to another. Types: equal, or one of them float32 (narrow ones are widened exactly, and rounded to nearest
/// even).
struct MovePiece {
  int32_t source = 0;         ///< which of the table's sources they come from
  int64_t first_element = 0;  ///< of the source
  int64_t elements = 0;
  void* to = nullptr;  ///< null: they are only looked at
  ElementType to_type = ElementType::f32;
};

/// Elements of a piece that one block of threads moves.
constexpr int64_t kMoveElements = 8192;
struct MoveTile {
  int64_t first_element;  ///< of the piece
  int32_t piece;
};

/// A tensor that pieces come from, as the host finds it each time.
struct MoveSource {
  enum class What : uint8_t { moves, is_zero, stays };
  const void* elements = nullptr;
  ElementType type = ElementType::f32;
  What what = What::moves;  ///< is_zero: its pieces become zeros; stays: they are left as they are
};

struct MoveTable {
  const MoveSource* sources = nullptr;
  const MovePiece* pieces = nullptr;
  const MoveTile* tiles = nullptr;
  int32_t tile_count = 0;
  /// Gets nonfinite = 1 if g·g of some element is not finite in the arithmetic's type; null: nothing is tested.
  StepControl* control = nullptr;
};

/// What the ranks add up on their devices, so that all of them decide alike.
struct Agreed {
  double squares = 0;    ///< of the summed gradient
  double nonfinite = 0;  ///< ranks with a gradient that has a NaN or inf in g·g
};

/// What a step did, for who watches it one step later.
struct StepOutcome {
  double norm = 0;  ///< of the averaged gradient; 0 where it is not asked for
  double clip = 1;
  int64_t skipped = 0;        ///< steps so far
  int32_t skip = 0;           ///< this step was
  float loss_scaled_by = 1;   ///< in this step
  LossScaleState loss_scale;  ///< after it
};

}  // namespace fusedbun::device
