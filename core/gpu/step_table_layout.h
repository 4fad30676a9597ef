#pragma once
// StepTableLayout: cuts the matrices of a step into the tiles of a StepTable (step_table.h), and says how much scratch memory they need.
// Worked out on the host, once; addresses are a device's and never followed here. No torch, no CUDA.
//
// Thread safety: none.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fusedbun/core/gpu/step_table.h"

namespace fusedbun::device {

/// Rows that are stepped: where they lie, and what the options make of them. Pointers that the options do not need are null.
template <class T>
struct SegmentMemory {
  T* parameter = nullptr;
  uint16_t* low_precision_parameter = nullptr;
  uint16_t* remainder = nullptr;
  uint32_t parameter_seed = 0;
  void* momentum = nullptr;
  T* full = nullptr;
  T* row = nullptr;
};

/// Tiles that are launched together: what is stepped while others are on their way. A matrix has at most one segment among them.
struct TileGroup {
  int32_t first_tile = 0, tile_count = 0;
  int32_t first_collect = 0, collect_count = 0;
  bool is_centred = false;  ///< some of its segments are
  bool has_finish = false;  ///< the update of some follows the absorbed columns
};

template <class T>
class StepTableLayout {
 public:
  /// The segments that follow are a new group. Groups are stepped one after the other, so they share scratch memory.
  void begin_group();
  /// A matrix, or a parameter that is none; returns its number. `kind`, `columns` and `rows_total` are filled in by its segments.
  int32_t add_matrix(const MatrixEntry<T>& matrix);
  /// Some of its rows. `parameter_elements` counts the whole parameter; a segment of the same parameter as the one
  /// before (`continues`) adds to its sum of squares.
  void add_segment(int32_t matrix, const RowRange& range, const SegmentMemory<T>& memory,
                   const Options& options, int64_t parameter_elements, bool continues);

  /// Bytes of scratch memory, aligned to 16, alive from a group's begin to its collect.
  int64_t scratch_bytes() const { return scratch_bytes_; }
  void set_scratch(std::byte* memory);

  std::vector<MatrixEntry<T>> matrices;
  std::vector<SegmentEntry<T>> segments;
  std::vector<Tile> tiles;
  std::vector<CollectTile> collect_tiles;
  std::vector<TileGroup> groups;

 private:
  struct Scratch {
    int64_t band_columns = -1, block_gradients = -1, block_rows = -1, block_squares = -1;
  };
  int64_t take_scratch(int64_t doubles);
  void cut(const RowBands& bands, int32_t segment, int64_t columns);
  void collect_squares(int32_t segment, bool continues);

  std::vector<Scratch> scratch_;  ///< [segment] offsets in doubles
  int64_t group_scratch_ = 0;     ///< bytes that the last group has taken
  int64_t scratch_bytes_ = 0;
};

/// The factors of a parameter's step, without what the device completes.
template <class T>
StepFactors<T> step_factors(const RowRange& range, const StepScalars& scalars,
                            const Options& options);

}  // namespace fusedbun::device
