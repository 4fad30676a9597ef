#include "fusedbun/core/gpu/step_table_layout.h"

#include <algorithm>
#include <cstdint>

namespace fusedbun::device {
namespace {

using fused::PassArguments;
using fused::PassKind;

// The update's rules and shape: of begin, or of finish where that has the update.
template <class T>
PassArguments<T> update_of(const RowRange& range, const StepScalars& scalars,
                           const Options& options) {
  const bool has_momentum = options.momentum_beta > 0;
  auto a = fused::begin_arguments<T>(range, scalars, options, has_momentum);
  if (a.kind == PassKind::statistics) {
    a = fused::finish_arguments<T>(range, scalars, options, has_momentum);
  }
  return a;
}

bool is_aligned(const void* memory, size_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}

template <class T>
bool lies_in_fours(const SegmentMemory<T>& memory, bool momentum_is_bf16, int64_t columns) {
  constexpr size_t kWide = 16, kNarrow = 8;  // bytes that one thread moves at once
  return columns % 4 == 0 && is_aligned(memory.parameter, kWide) &&
         is_aligned(memory.low_precision_parameter, kNarrow) &&
         is_aligned(memory.remainder, kNarrow) &&
         is_aligned(memory.momentum, momentum_is_bf16 ? kNarrow : kWide) &&
         is_aligned(memory.full, kWide);
}

int64_t blocks_of(int64_t columns) {
  return (columns + kSumBlock - 1) / kSumBlock;
}

}  // namespace

template <class T>
void StepTableLayout<T>::begin_group() {
  groups.push_back({.first_tile = static_cast<int32_t>(tiles.size()),
                    .first_collect = static_cast<int32_t>(collect_tiles.size())});
  group_scratch_ = 0;
}

template <class T>
int32_t StepTableLayout<T>::add_matrix(const MatrixEntry<T>& matrix) {
  matrices.push_back(matrix);
  return static_cast<int32_t>(matrices.size() - 1);
}

template <class T>
void StepTableLayout<T>::add_segment(int32_t number, const RowRange& range,
                                     const SegmentMemory<T>& memory, const Options& options,
                                     int64_t parameter_elements, bool continues) {
  MatrixEntry<T>& matrix = matrices[number];
  const PassArguments<T> update = update_of<T>(range, step_scalars(options, 1, 1), options);
  matrix.kind = update.kind;
  matrix.columns = matrix.col == nullptr ? 0 : range.columns;
  matrix.rows_total = static_cast<double>(range.rows_per_matrix());

  SegmentEntry<T> entry;
  static_cast<fused::PassRules&>(entry) = update;
  static_cast<fused::PassShape&>(entry) = update;
  entry.parameter = memory.parameter;
  entry.low_precision_parameter = memory.low_precision_parameter;
  entry.remainder = memory.remainder;
  entry.parameter_seed = memory.parameter_seed;
  entry.momentum = memory.momentum;
  entry.full = memory.full;
  entry.row = memory.row;
  entry.column_values = entry.kind == PassKind::sm3 ? matrix.col : matrix.values;
  entry.totals = matrix.totals;
  entry.squares = matrix.squares;
  entry.new_squares = matrix.new_squares;
  entry.parameter_elements = static_cast<double>(parameter_elements);
  entry.matrix = number;
  entry.in_fours = lies_in_fours(memory, entry.momentum_is_bf16, entry.columns);
  const RowBands bands(entry.rows, entry.columns);
  entry.bands = static_cast<int32_t>(bands.count);

  const auto index = static_cast<int32_t>(segments.size());
  Scratch scratch;
  const int64_t of_blocks = blocks_of(entry.columns) * entry.rows;
  const bool has_row = entry.kind == PassKind::mean || entry.kind == PassKind::sm3;
  if (matrix.col != nullptr) scratch.band_columns = take_scratch(bands.count * entry.columns);
  if (entry.centralize) scratch.block_gradients = take_scratch(of_blocks);
  if (has_row) scratch.block_rows = take_scratch(of_blocks);
  if (matrix.new_squares != nullptr) scratch.block_squares = take_scratch(of_blocks);
  scratch_.push_back(scratch);
  segments.push_back(entry);
  TileGroup& group = groups.back();
  group.is_centred |= entry.centralize;
  group.has_finish |= entry.kind == PassKind::columns;

  cut(bands, index, entry.columns);
  const auto collect = [&](CollectTile::What what, int64_t count) {
    for (int64_t first = 0; first < count; first += kCollectThreads) {
      collect_tiles.push_back({index, what, static_cast<int32_t>(first / kCollectThreads)});
    }
  };
  if (matrix.col != nullptr) collect(CollectTile::What::columns, entry.columns);
  if (has_row) collect(CollectTile::What::rows, entry.rows);
  if (matrix.new_squares != nullptr) collect_squares(index, continues);
  group.tile_count = static_cast<int32_t>(tiles.size()) - group.first_tile;
  group.collect_count = static_cast<int32_t>(collect_tiles.size()) - group.first_collect;
}

// Segments of one parameter are added up by one block of threads, one after the other.
template <class T>
void StepTableLayout<T>::collect_squares(int32_t segment, bool continues) {
  for (auto i = static_cast<int32_t>(collect_tiles.size()); i-- > groups.back().first_collect;) {
    CollectTile& tile = collect_tiles[static_cast<size_t>(i)];
    if (!continues || tile.what != CollectTile::What::squares) continue;
    ++tile.index;
    return;
  }
  collect_tiles.push_back({segment, CollectTile::What::squares, 1});
}

template <class T>
void StepTableLayout<T>::cut(const RowBands& bands, int32_t segment, int64_t columns) {
  for (int32_t band = 0; band < bands.count; ++band) {
    for (int32_t block = 0; block < blocks_of(columns); ++block) {
      tiles.push_back({bands.begin(band), bands.begin(band + 1), segment, band, block});
    }
  }
}

template <class T>
int64_t StepTableLayout<T>::take_scratch(int64_t doubles) {
  const auto offset = group_scratch_ / static_cast<int64_t>(sizeof(double));
  group_scratch_ += (doubles + 1) / 2 * 2 * static_cast<int64_t>(sizeof(double));
  scratch_bytes_ = std::max(scratch_bytes_, group_scratch_);
  return offset;
}

template <class T>
void StepTableLayout<T>::set_scratch(std::byte* memory) {
  auto* const doubles = reinterpret_cast<double*>(memory);
  const auto at = [&](int64_t offset) { return offset < 0 ? nullptr : doubles + offset; };
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i].band_columns = at(scratch_[i].band_columns);
    segments[i].block_gradients = at(scratch_[i].block_gradients);
    segments[i].block_rows = at(scratch_[i].block_rows);
    segments[i].block_squares = at(scratch_[i].block_squares);
  }
}

template <class T>
StepFactors<T> step_factors(const RowRange& range, const StepScalars& scalars,
                            const Options& options) {
  const PassArguments<T> update = update_of<T>(range, scalars, options);
  StepFactors<T> factors;
  factors.scalars = update;
  factors.lr = scalars.lr;
  if (update.momentum_kind == fused::MomentumKind::of_update) {
    factors.momentum_correction = scalars.momentum_correction;
  }
  return factors;
}

#define FUSEDBUN_INSTANTIATE(T)      \
  template class StepTableLayout<T>; \
  template StepFactors<T> step_factors<T>(const RowRange&, const StepScalars&, const Options&);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun::device
