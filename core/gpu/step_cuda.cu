#include "fusedbun/core/gpu/step_cuda.h"

#include "fusedbun/core/gpu/cuda_elements.cuh"
#include "fusedbun/core/gpu/cuda_sums.cuh"

namespace fusedbun::FUSEDBUN_CUDA {
namespace {

using device::CollectTile;
using device::MatrixEntry;
using device::SegmentEntry;
using device::StepFactors;
using device::StepTable;
using device::Tile;
using fused::MomentumKind;
using fused::PassKind;
using fused::PassScalars;

// Four threads hold the sixteen lanes of a row, four columns each; so a block steps 32 rows at once.
constexpr int kThreadsOfRow = kSumLanes / kFour;
constexpr int kRows = kThreads / kThreadsOfRow;
static_assert(kThreads == device::kCollectThreads);
// After so many columns the column sums are taken up: one column by each thread.
constexpr int kChunk = kThreads;
// Blocks on a multiprocessor: with more of them, registers would not suffice.
constexpr int kBlocksOfCollect = 8;
template <class T>
constexpr int kBlocksOfStep = sizeof(T) == sizeof(float) ? 4 : 2;

// Four elements of a type that only the table knows, as they came from memory: they are widened when they are used, so that several
// loads are under way at once.
template <class T>
union Loaded {
  Four<T> wide;
  Four<uint16_t> narrow;
};
template <class T>
__device__ Loaded<T> load_any(const void* from, bool is_narrow, int64_t element, int live,
                              bool at_once) {
  Loaded<T> loaded;
  if (is_narrow) {
    loaded.narrow = load(static_cast<const uint16_t*>(from) + element, live, at_once);
  } else {
    loaded.wide = load(static_cast<const T*>(from) + element, live, at_once);
  }
  return loaded;
}

__device__ bool is_narrow(ElementType type) {
  return type == ElementType::bf16 || type == ElementType::f16;
}

__device__ bool is_in_fours(const device::Gradient& gradient) {
  const uintptr_t at_once =
      is_narrow(gradient.type) ? alignof(Four<uint16_t>) : alignof(Four<float>);
  return reinterpret_cast<uintptr_t>(gradient.elements) % at_once == 0;
}

// --- the factors of a step ----------------------------------------------------------------------

// Of 2^-64 to 2^62, as fused_pass.cpp has it.
__device__ bool is_power_of_two(double x) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(x));
  const auto exponent = static_cast<int>(bits >> 52) - 1023;
  return (bits & 0xfffffffffffffULL) == 0 && exponent > -65 && exponent < 63;
}

// False: this matrix is not stepped.
template <class T>
__device__ bool find_factors(const StepTable<T>& table, int32_t matrix, StepFactors<T>& factors) {
  if (table.control->skip != 0 || table.factors_of[matrix] < 0) return false;
  const int64_t behind = table.control->skipped - table.inputs->skipped_as_known;
  factors = table.factors[table.factors_of[matrix] + behind];
  return true;
}

// The same, with what the device alone knows.
template <class T>
__device__ bool find_scalars(const StepTable<T>& table, const SegmentEntry<T>& s,
                             PassScalars<T>& scalars) {
  StepFactors<T> factors;
  if (!find_factors(table, s.matrix, factors)) return false;
  scalars = factors.scalars;
  const double divisor = table.control->divisor;
  scalars.gradient_divisor = static_cast<T>(divisor);
  scalars.gradient_inverse = is_power_of_two(divisor) ? static_cast<T>(1 / divisor) : T{0};
  scalars.gradient_scale = static_cast<T>(table.control->clip);
  double scale = 1;
  if (s.squares != nullptr) {
    const double rms = root(divide(*s.squares, s.parameter_elements));
    const double smallest = kSmallestParameterScale;
    scale = rms <= smallest ? smallest : rms;  // a NaN stays one
  }
  scalars.step = static_cast<T>(divide(mul(factors.lr, scale), factors.momentum_correction));
  return true;
}

// --- one element --------------------------------------------------------------------------------

template <class T>
__device__ T averaged(const PassScalars<T>& f, T sum) {
  if (f.gradient_inverse != 0) return mul(mul(sum, f.gradient_inverse), f.gradient_scale);
  return mul(divide(sum, f.gradient_divisor), f.gradient_scale);
}

// What the statistics of the step before say.
template <class T, PassKind kKind>
__device__ T reconstructed(T r, T column) {
  if constexpr (kKind == PassKind::sm3) return smaller(r, column);
  return mul(column, r);
}

// The master of a bfloat16 parameter, or the parameter's value where it is not the master's rounding any more, because the program has
// written it. Floats of one sign order as their bits.
template <class T>
__device__ T following(T master, uint16_t parameter) {
  const unsigned written = static_cast<unsigned>(parameter) << 16;
  const unsigned apart = __float_as_uint(static_cast<float>(master)) - written;
  return apart + 0x8000u <= 0x10000u ? master : static_cast<T>(__uint_as_float(written));
}

// Four elements of a parameter as they lie in memory.
template <class T>
struct LoadedParameter {
  Loaded<T> own;  // wide: what is stepped; narrow: the remainder
  Four<uint16_t> low;
};
template <class T>
__device__ LoadedParameter<T> load_parameter(const SegmentEntry<T>& s, int64_t element, int live,
                                             bool at_once) {
  LoadedParameter<T> loaded = {};
  if (s.parameter != nullptr) loaded.own.wide = load(s.parameter + element, live, at_once);
  if (s.low_precision_parameter != nullptr)
    loaded.low = load(s.low_precision_parameter + element, live, at_once);
  if (s.remainder != nullptr) loaded.own.narrow = load(s.remainder + element, live, at_once);
  return loaded;
}

// The value of one of them.
template <class T>
__device__ T value_of(const SegmentEntry<T>& s, const LoadedParameter<T>& loaded, int i) {
  if (s.low_precision_parameter == nullptr) return loaded.own.wide.x[i];
  switch (s.low_precision) {
    case LowPrecision::master:
      return following(loaded.own.wide.x[i], loaded.low.x[i]);
    case LowPrecision::remainder:
      return static_cast<T>(with_remainder(loaded.low.x[i], loaded.own.narrow.x[i]));
    case LowPrecision::stochastic:
      break;
  }
  return static_cast<T>(widened_bf16(loaded.low.x[i]));
}

// Gives one of them its new value; `seed` is that of the rounding. Returns what is kept of it.
template <class T>
__device__ T put_value(const SegmentEntry<T>& s, LoadedParameter<T>& loaded, int i, T fresh,
                       unsigned seed, int64_t element) {
  if (s.low_precision_parameter == nullptr) return loaded.own.wide.x[i] = fresh;
  const auto narrow = static_cast<float>(fresh);
  switch (s.low_precision) {
    case LowPrecision::master:
      loaded.low.x[i] = rounded_to_bf16(narrow);
      return loaded.own.wide.x[i] = fresh;
    case LowPrecision::remainder:
      split(narrow, loaded.low.x[i], loaded.own.narrow.x[i]);
      return fresh;
    case LowPrecision::stochastic:
      break;
  }
  loaded.low.x[i] = stochastically_rounded(narrow, seed, s.first_of_parameter + element);
  return static_cast<T>(widened_bf16(loaded.low.x[i]));
}

template <class T>
__device__ void store_parameter(const SegmentEntry<T>& s, const LoadedParameter<T>& loaded,
                                int64_t element, int live, bool at_once) {
  if (s.parameter != nullptr) store(s.parameter + element, loaded.own.wide, live, at_once);
  if (s.low_precision_parameter != nullptr)
    store(s.low_precision_parameter + element, loaded.low, live, at_once);
  if (s.remainder != nullptr) store(s.remainder + element, loaded.own.narrow, live, at_once);
}

// --- sums of a row, in the fixed order ---------------------------------------------------------

// The tree over sixteen lanes, of which this thread holds four; the first of a row's threads has the result.
__device__ double sum_of_four_lanes(const double (&lanes)[kFour]) {
  double x[kFour];
  for (int i = 0; i < kFour; ++i)
    x[i] = add(lanes[i], __shfl_down_sync(kWholeWarp, lanes[i], 2, kThreadsOfRow));
  for (int i = 0; i < kFour; ++i)
    x[i] = add(x[i], __shfl_down_sync(kWholeWarp, x[i], 1, kThreadsOfRow));
  return add(add(x[0], x[2]), add(x[1], x[3]));
}

// --- a tile -------------------------------------------------------------------------------------

// Statistics of 32 rows by 128 columns on their way from the rows' threads to the columns'; rows are 16 words longer than they need be, so
// that no two threads of a warp meet in a bank.
template <class T>
struct TileMemory {
  T statistics[kRows][kChunk + 16];
  double columns[kSumBlock];
};

// Where a thread works in its tile.
struct Place {
  int64_t first_row, end_row;        // of the band
  int64_t first_column, end_column;  // of the block
  int row, column;                   // of this thread, among 32 rows and 16 columns
};

template <class T>
__device__ Place place_in(const SegmentEntry<T>& s, const Tile& tile) {
  Place place;
  place.first_row = tile.first_row;
  place.end_row = tile.end_row;
  place.first_column = tile.block * kSumBlock;
  const int64_t end = place.first_column + kSumBlock;
  place.end_column = end < s.columns ? end : s.columns;
  place.row = static_cast<int>(threadIdx.x) / kThreadsOfRow;
  place.column = static_cast<int>(threadIdx.x) % kThreadsOfRow * kFour;
  return place;
}

// How many of the four columns from `column` on exist in this row.
template <class T>
__device__ int live_columns(const SegmentEntry<T>& s, const Place& place, int64_t row,
                            int64_t column) {
  if (row >= place.end_row) return 0;
  const int64_t in_row = s.elements - row * s.columns;  // the last row may be shorter
  const int64_t end = in_row < place.end_column ? in_row : place.end_column;
  const int64_t live = end - column;
  return live < 0 ? 0 : live < kFour ? static_cast<int>(live) : kFour;
}

// The averaged gradient of four columns.
template <class T>
__device__ void widen_gradient(const device::Gradient& gradient, const PassScalars<T>& f,
                               const Loaded<T>& loaded, T (&g)[kFour]) {
  for (int i = 0; i < kFour; ++i) {
    const T sum =
        gradient.type == ElementType::bf16  ? static_cast<T>(widened_bf16(loaded.narrow.x[i]))
        : gradient.type == ElementType::f16 ? static_cast<T>(widened_f16(loaded.narrow.x[i]))
                                            : loaded.wide.x[i];
    g[i] = averaged(f, sum);
  }
}

template <class T>
__device__ void sum_gradient_of_tile(const StepTable<T>& table, const Tile& tile) {
  const SegmentEntry<T>& s = table.segments[tile.segment];
  const device::Gradient gradient = table.gradients[tile.segment];
  PassScalars<T> f;
  if (!s.centralize || !find_scalars(table, s, f)) return;
  const Place place = place_in(s, tile);
  for (int64_t group = place.first_row; group < place.end_row; group += kRows) {
    const int64_t row = group + place.row;
    double lanes[kFour] = {};
    for (int64_t j = place.first_column + place.column; j < place.end_column; j += kSumLanes) {
      const int live = live_columns(s, place, row, j);
      if (live == 0) continue;
      const bool at_once = s.in_fours && live == kFour && is_in_fours(gradient);
      const auto loaded = load_any<T>(gradient.elements, is_narrow(gradient.type),
                                      row * s.columns + j, live, at_once);
      T g[kFour];
      widen_gradient(gradient, f, loaded, g);
      for (int i = 0; i < live; ++i) lanes[i] = add(lanes[i], static_cast<double>(g[i]));
    }
    const double sum = sum_of_four_lanes(lanes);
    if (place.column == 0 && row < place.end_row)
      s.block_gradients[tile.block * s.rows + row] = sum;
  }
}

// What a row carries through the columns of a tile.
template <class T>
struct RowOfTile {
  T r = 0;          // its statistic of the step before
  double mean = 0;  // of its gradient, where rows are centred
  double sums[kFour] = {};
  T top = 0;
  double squares[kFour] = {};
};

// Steps 0 to 9 for four columns of one row. `statistics` gets what the column's statistic takes in.
template <class T, PassKind kKind>
__device__ void step_four(const SegmentEntry<T>& s, const device::Gradient& gradient,
                          const PassScalars<T>& f, int64_t row, int64_t column, int live,
                          RowOfTile<T>& of_row, T (&statistics)[kFour]) {
  constexpr bool kUpdates = kKind != PassKind::statistics;
  constexpr bool kHasColumns =
      kKind == PassKind::mean || kKind == PassKind::sm3 || kKind == PassKind::columns;
  const int64_t element = row * s.columns + column;
  const bool at_once = s.in_fours && live == kFour;
  const bool has_momentum = kUpdates && s.momentum_kind != MomentumKind::none;
  // All loads first.
  const bool gradient_at_once = at_once && is_in_fours(gradient);
  const auto loaded_g =
      load_any<T>(gradient.elements, is_narrow(gradient.type), element, live, gradient_at_once);
  Loaded<T> loaded_m = {};
  if (has_momentum) loaded_m = load_any<T>(s.momentum, s.momentum_is_bf16, element, live, at_once);
  Four<T> full = {}, of_column = {};
  LoadedParameter<T> p = {};
  if constexpr (kUpdates) p = load_parameter(s, element, live, at_once);
  const unsigned seed = mixed(f.step_seed ^ s.parameter_seed);
  if constexpr (kKind == PassKind::full) full = load(s.full + element, live, at_once);
  if constexpr (kHasColumns) of_column = load(s.column_values + column, live, at_once);

  T g[kFour];
  widen_gradient(gradient, f, loaded_g, g);
  Four<T> fresh_m = {};
  const auto with_momentum = [&](int i, T x) {
    const T old = s.momentum_is_bf16 ? static_cast<T>(widened_bf16(loaded_m.narrow.x[i]))
                                     : loaded_m.wide.x[i];
    return fresh_m.x[i] = add(mul(old, f.momentum_beta), mul(x, f.momentum_rest));
  };
  for (int i = 0; i < kFour; ++i) {
    if (s.centralize) g[i] = static_cast<T>(add(static_cast<double>(g[i]), -of_row.mean));
    if (has_momentum && s.momentum_kind == MomentumKind::of_gradient)
      g[i] = mul(with_momentum(i, g[i]), f.momentum_scale);
    const T size = magnitude(g[i]);
    if (s.masked && size <= f.eps) g[i] = 0;  // NaN is not <= eps and stays
    T u = g[i];
    T square = mul(g[i], g[i]);
    if constexpr (kKind == PassKind::statistics) statistics[i] = square;
    if constexpr (kKind == PassKind::columns) {
      if (s.use_rms) u = divide(g[i], of_column.x[i]);
    }
    if constexpr (kKind == PassKind::mean || kKind == PassKind::sm3 || kKind == PassKind::full) {
      T P = full.x[i];
      if constexpr (kKind != PassKind::full) P = reconstructed<T, kKind>(of_row.r, of_column.x[i]);
      T v = add(mul(P, f.beta), mul(square, f.beta_rest));
      if (s.held && !(size > f.eps)) v = square = P;
      full.x[i] = v;
      statistics[i] = kKind == PassKind::sm3 ? magnitude(v) : square;
      if (s.use_rms) u = divide(g[i], add(root(mul(v, f.second_moment_scale)), f.eps));
    }
    if constexpr (kUpdates) {
      if (has_momentum && s.momentum_kind == MomentumKind::of_update) u = with_momentum(i, u);
      const T fresh = add(mul(value_of(s, p, i), f.keep), -mul(u, f.step));
      const auto kept = static_cast<double>(put_value(s, p, i, fresh, seed, element + i));
      if (s.block_squares != nullptr && i < live)
        of_row.squares[i] = add(of_row.squares[i], mul(kept, kept));
    }
  }
  if constexpr (kUpdates) store_parameter(s, p, element, live, at_once);
  if constexpr (kKind == PassKind::full) store(s.full + element, full, live, at_once);
  if (has_momentum && !s.momentum_is_bf16)
    store(static_cast<T*>(s.momentum) + element, fresh_m, live, at_once);
  if (has_momentum && s.momentum_is_bf16) {
    Four<uint16_t> rounded;
    for (int i = 0; i < kFour; ++i)
      rounded.x[i] = rounded_to_bf16(static_cast<float>(fresh_m.x[i]));
    store(static_cast<uint16_t*>(s.momentum) + element, rounded, live, at_once);
  }
  for (int i = 0; i < live; ++i) {
    if constexpr (kKind == PassKind::mean)
      of_row.sums[i] = add(of_row.sums[i], static_cast<double>(statistics[i]));
    if constexpr (kKind == PassKind::sm3) of_row.top = larger(statistics[i], of_row.top);
  }
}

template <class T>
__device__ double mean_of_row(const SegmentEntry<T>& s, int64_t row) {
  double sum = 0;
  for (int64_t block = 0; block * kSumBlock < s.columns; ++block)
    sum = add(sum, s.block_gradients[block * s.rows + row]);
  return divide(sum, static_cast<double>(s.columns));
}

// What the threads of a row have found becomes the tile's part of its statistics.
template <class T, PassKind kKind>
__device__ void keep_row(const SegmentEntry<T>& s, const Tile& tile, const Place& place,
                         int64_t row, const RowOfTile<T>& of_row) {
  const bool is_mine = place.column == 0 && row < place.end_row;
  const int64_t at = tile.block * s.rows + row;
  if constexpr (kKind == PassKind::mean) {
    const double sum = sum_of_four_lanes(of_row.sums);
    if (is_mine) s.block_rows[at] = sum;
  }
  if constexpr (kKind == PassKind::sm3) {
    T top = of_row.top;
    for (int width = kThreadsOfRow / 2; width > 0; width /= 2)
      top = larger(__shfl_down_sync(kWholeWarp, top, width, kThreadsOfRow), top);
    if (is_mine) s.block_rows[at] = static_cast<double>(top);
  }
  if constexpr (kKind != PassKind::statistics) {
    if (s.block_squares == nullptr) return;
    const double squares = sum_of_four_lanes(of_row.squares);
    if (is_mine) s.block_squares[at] = squares;
  }
}

template <class T, PassKind kKind>
__device__ void step_tile(const SegmentEntry<T>& s, const device::Gradient& gradient,
                          const PassScalars<T>& f, const Tile& tile, TileMemory<T>& memory) {
  constexpr bool kKeepsColumns =
      kKind == PassKind::mean || kKind == PassKind::sm3 || kKind == PassKind::statistics;
  const Place place = place_in(s, tile);
  const int own_column = static_cast<int>(threadIdx.x);
  if constexpr (kKeepsColumns) {
    // A single band goes on from what other segments of the matrix have left.
    const bool goes_on = s.bands == 1;
    for (int64_t j = place.first_column + own_column; j < place.end_column; j += kThreads)
      memory.columns[j - place.first_column] = goes_on ? s.totals[j] : 0;
  }
  for (int64_t group = place.first_row; group < place.end_row; group += kRows) {
    const int64_t row = group + place.row;
    RowOfTile<T> of_row;
    if (row < place.end_row) {
      if constexpr (kKind == PassKind::mean || kKind == PassKind::sm3) of_row.r = s.row[row];
      if (s.centralize) of_row.mean = mean_of_row(s, row);
    }
    for (int64_t chunk = place.first_column; chunk < place.end_column; chunk += kChunk) {
      for (int k = 0; k < kChunk; k += kSumLanes) {
        const int64_t column = chunk + k + place.column;
        const int live = live_columns(s, place, row, column);
        T statistics[kFour] = {};
        if (live > 0) step_four<T, kKind>(s, gradient, f, row, column, live, of_row, statistics);
        if constexpr (kKeepsColumns) {
          for (int i = 0; i < kFour; ++i)
            memory.statistics[place.row][k + place.column + i] = statistics[i];
        }
      }
      if constexpr (kKeepsColumns) {
        __syncthreads();
        double& column = memory.columns[chunk - place.first_column + own_column];
        const int64_t rows = place.end_row - group;
        double kept = column;
        for (int i = 0; i < kRows && i < rows; ++i) {
          const T next = memory.statistics[i][own_column];
          if constexpr (kKind == PassKind::sm3) {
            kept = larger(static_cast<double>(next), kept);
          } else {
            kept = add(kept, static_cast<double>(next));
          }
        }
        column = kept;
        __syncthreads();  // before the next chunk
      }
    }
    keep_row<T, kKind>(s, tile, place, row, of_row);
  }
  if constexpr (kKeepsColumns) {
    for (int64_t j = place.first_column + own_column; j < place.end_column; j += kThreads)
      s.band_columns[tile.band * s.columns + j] = memory.columns[j - place.first_column];
  }
}

// --- kernels ------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) sum_gradients(StepTable<T> table) {
  sum_gradient_of_tile(table, table.tiles[blockIdx.x]);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfStep<T>)
    step_tiles(StepTable<T> table, bool finishes) {
  FUSEDBUN_SHARED(TileMemory<T>, memory);
  const Tile tile = table.tiles[blockIdx.x];
  const SegmentEntry<T>& s = table.segments[tile.segment];
  const device::Gradient gradient = table.gradients[tile.segment];
  PassScalars<T> f;
  if ((finishes && s.kind != PassKind::columns) || !find_scalars(table, s, f)) return;
  switch (s.kind) {
    case PassKind::mean:
      return step_tile<T, PassKind::mean>(s, gradient, f, tile, memory);
    case PassKind::sm3:
      return step_tile<T, PassKind::sm3>(s, gradient, f, tile, memory);
    case PassKind::full:
      return step_tile<T, PassKind::full>(s, gradient, f, tile, memory);
    case PassKind::columns:
    case PassKind::statistics:
      return finishes ? step_tile<T, PassKind::columns>(s, gradient, f, tile, memory)
                      : step_tile<T, PassKind::statistics>(s, gradient, f, tile, memory);
  }
}

template <class T>
__device__ void collect_columns(const SegmentEntry<T>& s, int64_t column) {
  if (column >= s.columns) return;
  double total = s.bands == 1 ? 0 : s.totals[column];
  for (int64_t band = 0; band < s.bands; ++band) {
    const double of_band = s.band_columns[band * s.columns + column];
    total = s.kind == PassKind::sm3 ? larger(total, of_band) : add(total, of_band);
  }
  s.totals[column] = total;
}

template <class T>
__device__ void collect_row(const SegmentEntry<T>& s, double beta, int64_t row) {
  if (row >= s.rows) return;
  double of_row = 0;
  for (int64_t block = 0; block * kSumBlock < s.columns; ++block) {
    const double of_block = s.block_rows[block * s.rows + row];
    of_row = s.kind == PassKind::sm3 ? larger(of_row, of_block) : add(of_row, of_block);
  }
  if (s.kind == PassKind::sm3) {
    s.row[row] = static_cast<T>(of_row);
    return;
  }
  const double mean = divide(of_row, static_cast<double>(s.columns));
  s.row[row] = static_cast<T>(add(mul(beta, static_cast<double>(s.row[row])), mul(1 - beta, mean)));
}

// The sum of squares of `count` segments of one parameter is added to `to`.
template <class T>
__device__ __forceinline__ void collect_squares(const SegmentEntry<T>* segments, int32_t count,
                                                double* to) {
  double sum = *to;  // by all threads before the first sum is there
  for (int32_t i = 0; i < count; ++i) {
    const SegmentEntry<T>& s = segments[i];
    sum = add(sum, ordered_sum_of(s.rows, [&](int64_t row) {
                double of_row = 0;
                for (int64_t block = 0; block * kSumBlock < s.columns; ++block)
                  of_row = add(of_row, s.block_squares[block * s.rows + row]);
                return of_row;
              }));
  }
  if (threadIdx.x == 0) *to = sum;
}

// The update of kind columns, and its squares, come with `finish`.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfCollect)
    collect_tiles(StepTable<T> table, bool finishes) {
  const CollectTile tile = table.collect_tiles[blockIdx.x];
  const SegmentEntry<T>& s = table.segments[tile.segment];
  const bool of_finish = s.kind == PassKind::columns && tile.what == CollectTile::What::squares;
  StepFactors<T> factors;
  if (of_finish != finishes || !find_factors(table, s.matrix, factors)) return;
  const double beta = factors.scalars.row_beta;
  const int64_t index = int64_t{tile.index} * device::kCollectThreads + threadIdx.x;
  device::Pending& pending = table.pending[s.matrix];
  switch (tile.what) {
    case CollectTile::What::columns:
      collect_columns(s, index);
      if (index == 0) pending.beta = beta;
      return;
    case CollectTile::What::rows:
      return collect_row(s, beta, index);
    case CollectTile::What::squares:
      collect_squares(&s, tile.index, s.new_squares);
      if (threadIdx.x == 0) pending.squares = 1;
      return;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) absorb_matrices(StepTable<T> table, bool with_squares) {
  const MatrixEntry<T>& m = table.matrices[blockIdx.x];
  device::Pending& pending = table.pending[blockIdx.x];
  const double beta = pending.beta;
  for (int64_t j = threadIdx.x; beta >= 0 && j < m.columns; j += kThreads) {
    const double total = m.totals[j];
    if (m.kind == PassKind::sm3) {
      m.col[j] = static_cast<T>(total);
    } else {
      m.col[j] = static_cast<T>(add(mul(beta, static_cast<double>(m.col[j])),
                                    mul(1 - beta, divide(total, m.rows_total))));
    }
    m.totals[j] = 0;
  }
  __syncthreads();  // every thread has read beta
  if (threadIdx.x != 0) return;
  pending.beta = -1;
  if (pending.squares == 0 || !with_squares) return;
  pending.squares = 0;
  *m.squares = *m.new_squares;
  *m.new_squares = 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads) prepare_matrices(StepTable<T> table) {
  const MatrixEntry<T>& m = table.matrices[blockIdx.x];
  StepFactors<T> factors;
  if (m.values == nullptr || !find_factors(table, blockIdx.x, factors)) return;
  if (m.kind == PassKind::mean) {
    const double sum =
        ordered_sum_of(m.columns, [&](int64_t j) { return static_cast<double>(m.col[j]); });
    const double mean = divide(sum, static_cast<double>(m.columns));
    for (int64_t j = threadIdx.x; j < m.columns; j += kThreads) {
      m.values[j] = mean == 0 ? T{0} : static_cast<T>(divide(static_cast<double>(m.col[j]), mean));
    }
    return;
  }
  const PassScalars<T>& f = factors.scalars;
  for (int64_t j = threadIdx.x; j < m.columns; j += kThreads)
    m.values[j] = add(root(mul(m.col[j], f.second_moment_scale)), f.eps);
}

// The squares of the parameters as they are; a master first follows what the program wrote.
template <class T>
__global__ void __launch_bounds__(kThreads) square_tiles(StepTable<T> table) {
  const Tile tile = table.tiles[blockIdx.x];
  const SegmentEntry<T>& s = table.segments[tile.segment];
  if (s.block_squares == nullptr) return;
  const Place place = place_in(s, tile);
  for (int64_t group = place.first_row; group < place.end_row; group += kRows) {
    const int64_t row = group + place.row;
    RowOfTile<T> of_row;
    for (int64_t j = place.first_column + place.column; j < place.end_column; j += kSumLanes) {
      const int live = live_columns(s, place, row, j);
      const int64_t element = row * s.columns + j;
      const LoadedParameter<T> p = load_parameter(s, element, live, s.in_fours && live == kFour);
      for (int i = 0; i < live; ++i) {
        const auto wide = static_cast<double>(value_of(s, p, i));
        of_row.squares[i] = add(of_row.squares[i], mul(wide, wide));
      }
    }
    keep_row<T, PassKind::full>(s, tile, place, row, of_row);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfCollect) collect_measured(StepTable<T> table) {
  const CollectTile tile = table.collect_tiles[blockIdx.x];
  const SegmentEntry<T>& s = table.segments[tile.segment];
  if (tile.what != CollectTile::What::squares) return;
  collect_squares(&s, tile.index, s.new_squares);
  if (threadIdx.x == 0) table.pending[s.matrix].squares = 1;
}

}  // namespace

template <class T>
void absorb(const StepTable<T>& table, bool with_squares, CudaStream stream) {
  launch("the step's columns", absorb_matrices<T>, table.matrix_count, kThreads, stream, table,
         with_squares);
}

template <class T>
void prepare(const StepTable<T>& table, CudaStream stream) {
  launch("the step's preparation", prepare_matrices<T>, table.matrix_count, kThreads, stream,
         table);
}

template <class T>
void begin(const StepTable<T>& table, bool centred, CudaStream stream) {
  if (centred)
    launch("the rows' means", sum_gradients<T>, table.tile_count, kThreads, stream, table);
  launch("the step", step_tiles<T>, table.tile_count, kThreads, stream, table, false);
}

template <class T>
void collect(const StepTable<T>& table, CudaStream stream) {
  launch("the step's sums", collect_tiles<T>, table.collect_count, kThreads, stream, table, false);
}

template <class T>
void finish(const StepTable<T>& table, bool centred, CudaStream stream) {
  if (centred)
    launch("the rows' means", sum_gradients<T>, table.tile_count, kThreads, stream, table);
  launch("the step's second part", step_tiles<T>, table.tile_count, kThreads, stream, table, true);
  launch("the step's squares", collect_tiles<T>, table.collect_count, kThreads, stream, table,
         true);
}

template <class T>
void measure(const StepTable<T>& table, CudaStream stream) {
  launch("the parameters' squares", square_tiles<T>, table.tile_count, kThreads, stream, table);
  launch("the parameters' sums", collect_measured<T>, table.collect_count, kThreads, stream, table);
}

#define FUSEDBUN_INSTANTIATE(T)                                   \
  template void absorb<T>(const StepTable<T>&, bool, CudaStream); \
  template void prepare<T>(const StepTable<T>&, CudaStream);      \
  template void begin<T>(const StepTable<T>&, bool, CudaStream);  \
  template void collect<T>(const StepTable<T>&, CudaStream);      \
  template void finish<T>(const StepTable<T>&, bool, CudaStream); \
  template void measure<T>(const StepTable<T>&, CudaStream);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun::FUSEDBUN_CUDA
