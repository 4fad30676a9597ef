#include "fusedbun/core/gpu/gradient_cuda.h"

#include "fusedbun/core/gpu/cuda_elements.cuh"
#include "fusedbun/core/gpu/cuda_sums.cuh"

namespace fusedbun::FUSEDBUN_CUDA {
namespace {

using device::Agreed;
using device::MovePiece;
using device::MoveSource;
using device::MoveTable;
using device::MoveTile;
using device::StepControl;
using device::StepInputs;
using device::StepOutcome;

// --- pieces -------------------------------------------------------------------------------------

// Element types as the table names them; a float32 may come from or go to each of the narrow ones.
template <ElementType kType>
struct Element;
template <class T>
struct WideElement {
  using Stored = T;
  using Value = T;
  static __device__ Value widen(Stored x) { return x; }
  static __device__ Stored narrow(Value x) { return x; }
};
template <>
struct Element<ElementType::f32> : WideElement<float> {};
template <>
struct Element<ElementType::f64> : WideElement<double> {};
template <>
struct Element<ElementType::bf16> {
  using Stored = uint16_t;
  using Value = float;
  static __device__ Value widen(Stored x) { return widened_bf16(x); }
  static __device__ Stored narrow(Value x) { return rounded_to_bf16(x); }
};
template <>
struct Element<ElementType::f16> {
  using Stored = uint16_t;
  using Value = float;
  static __device__ Value widen(Stored x) { return widened_f16(x); }
  static __device__ Stored narrow(Value x) { return rounded_to_f16(x); }
};

// Not on x itself: a gradient whose square is inf would spoil the second moment although it is a number.
template <class Value>
__device__ bool square_is_finite(Value x) {
  const Value square = mul(x, x);
  return add(square, -square) == 0;
}

template <class From, class To, bool kConverts>
__device__ bool move_elements(const void* source, void* to, int64_t begin, int64_t end,
                              bool tests) {
  const auto* from = static_cast<const typename From::Stored*>(source);
  auto* target = static_cast<typename To::Stored*>(to);
  const bool in_fours = is_in_fours(from) && (target == nullptr || is_in_fours(target));
  bool finite = true;
  for (int64_t i = begin + threadIdx.x * int64_t{kFour}; i < end; i += kThreads * int64_t{kFour}) {
    const int64_t rest = end - i;
    const int live = rest < kFour ? static_cast<int>(rest) : kFour;
    const bool at_once = in_fours && live == kFour;
    const auto read = load(from + i, live, at_once);
    Four<typename To::Stored> written = {};
    for (int j = 0; j < kFour; ++j) {  // those that do not exist are 0
      if (tests || kConverts) {
        const auto value = From::widen(read.x[j]);
        if (tests) finite &= square_is_finite(value);
        if constexpr (kConverts) written.x[j] = To::narrow(value);
      }
      if constexpr (!kConverts) written.x[j] = read.x[j];
    }
    if (target != nullptr) store(target + i, written, live, at_once);
  }
  return finite;
}

template <ElementType kFrom>
__device__ bool move_from(const void* source, const MovePiece& piece, int64_t begin, int64_t end,
                          bool tests) {
  using From = Element<kFrom>;
  const auto* from = static_cast<const typename From::Stored*>(source) + piece.first_element;
  if (piece.to_type == kFrom || piece.to == nullptr)
    return move_elements<From, From, false>(from, piece.to, begin, end, tests);
  if constexpr (kFrom == ElementType::f32) {
    if (piece.to_type == ElementType::bf16)
      return move_elements<From, Element<ElementType::bf16>, true>(from, piece.to, begin, end,
                                                                   tests);
    return move_elements<From, Element<ElementType::f16>, true>(from, piece.to, begin, end, tests);
  } else if constexpr (kFrom != ElementType::f64) {
    return move_elements<From, Element<ElementType::f32>, true>(from, piece.to, begin, end, tests);
  }
  return true;
}

__device__ void zero_elements(const MovePiece& piece, int64_t begin, int64_t end) {
  const int64_t size = piece.to_type == ElementType::f64   ? 8
                       : piece.to_type == ElementType::f32 ? 4
                                                           : 2;
  auto* const to = static_cast<uint16_t*>(piece.to);
  for (int64_t i = begin * size / 2 + threadIdx.x; i < end * size / 2; i += kThreads) to[i] = 0;
}

// Of the piece.
__device__ int64_t end_of(const MoveTile& tile, const MovePiece& piece) {
  const int64_t end = tile.first_element + device::kMoveElements;
  return end < piece.elements ? end : piece.elements;
}

__global__ void __launch_bounds__(kThreads) move_tiles(MoveTable table) {
  const MoveTile tile = table.tiles[blockIdx.x];
  const MovePiece piece = table.pieces[tile.piece];
  const MoveSource source = table.sources[piece.source];
  const int64_t begin = tile.first_element, end = end_of(tile, piece);
  if (source.what == MoveSource::What::stays) return;
  if (source.what == MoveSource::What::is_zero) {
    if (piece.to != nullptr) zero_elements(piece, begin, end);
    return;
  }
  const bool tests = table.control != nullptr;
  bool finite = true;
  switch (source.type) {
    case ElementType::f32:
      finite = move_from<ElementType::f32>(source.elements, piece, begin, end, tests);
      break;
    case ElementType::f64:
      finite = move_from<ElementType::f64>(source.elements, piece, begin, end, tests);
      break;
    case ElementType::bf16:
      finite = move_from<ElementType::bf16>(source.elements, piece, begin, end, tests);
      break;
    case ElementType::f16:
      finite = move_from<ElementType::f16>(source.elements, piece, begin, end, tests);
      break;
  }
  if (!finite) table.control->nonfinite = 1;  // every writer writes the same
}

// --- squares ------------------------------------------------------------------------------------

template <ElementType kFrom>
__device__ double squares_from(const void* source, int64_t begin, int64_t end) {
  using From = Element<kFrom>;
  const auto* const elements = static_cast<const typename From::Stored*>(source) + begin;
  return ordered_sum_of(end - begin, [&](int64_t i) {
    const auto x = static_cast<double>(From::widen(elements[i]));
    return mul(x, x);
  });
}

__device__ double squares_of(const MoveSource& source, int64_t begin, int64_t end) {
  switch (source.type) {
    case ElementType::f32:
      return squares_from<ElementType::f32>(source.elements, begin, end);
    case ElementType::f64:
      return squares_from<ElementType::f64>(source.elements, begin, end);
    case ElementType::bf16:
      return squares_from<ElementType::bf16>(source.elements, begin, end);
    case ElementType::f16:
      break;
  }
  return squares_from<ElementType::f16>(source.elements, begin, end);
}

__global__ void __launch_bounds__(kThreads) square_tiles(MoveTable table, double* partials) {
  const MoveTile tile = table.tiles[blockIdx.x];
  const MovePiece piece = table.pieces[tile.piece];
  const MoveSource source = table.sources[piece.source];
  const int64_t begin = piece.first_element + tile.first_element;
  const int64_t end = piece.first_element + end_of(tile, piece);
  const bool counts = source.what == MoveSource::What::moves;
  const double sum = counts ? squares_of(source, begin, end) : 0;
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_partials(const double* partials, int64_t count, double* sum) {
  const double added = ordered_sum_of(count, [&](int64_t i) { return partials[i]; });
  if (threadIdx.x == 0) *sum = add(*sum, added);
}

// --- the decision -------------------------------------------------------------------------------

__global__ void offer_own(double* squares, StepControl* control, Agreed* agreed) {
  *agreed = {*squares, control->nonfinite != 0 ? 1.0 : 0.0};
  *squares = 0;
  control->nonfinite = 0;
}

__global__ void decide_step(const Agreed* agreed, const StepInputs* inputs, StepControl* control,
                            StepOutcome* outcome) {
  const bool skip = inputs->skips_nonfinite != 0 && agreed->nonfinite > 0;
  const float scale = inputs->scales_loss != 0 ? control->loss_scale.scale : 1.0F;
  control->divisor = mul(inputs->divisor, static_cast<double>(scale));
  const double norm_divisor = mul(inputs->norm_divisor, static_cast<double>(scale));
  const double norm = inputs->max_norm > 0 ? divide(root(agreed->squares), norm_divisor) : 0.0;
  control->clip = norm > inputs->max_norm ? divide(inputs->max_norm, norm) : 1.0;
  control->skip = skip ? 1 : 0;
  control->skipped += control->skip;
  if (inputs->scales_loss != 0)
    control->loss_scale = after_step(inputs->loss_scale, control->loss_scale, skip);
  *outcome = {norm, control->clip, control->skipped, control->skip, scale, control->loss_scale};
}

}  // namespace

void move(const MoveTable& table, CudaStream stream) {
  launch("the copy of gradients", move_tiles, table.tile_count, kThreads, stream, table);
}

void add_squares(const MoveTable& table, double* partials, double* sum, CudaStream stream) {
  launch("the gradient's norm", square_tiles, table.tile_count, kThreads, stream, table, partials);
  launch("the gradient's norm", add_partials, table.tile_count > 0 ? 1 : 0, kThreads, stream,
         partials, int64_t{table.tile_count}, sum);
}

void offer(double* squares, StepControl* control, Agreed* agreed, CudaStream stream) {
  launch("the agreement", offer_own, 1, 1, stream, squares, control, agreed);
}

void decide(const Agreed* agreed, const StepInputs* inputs, StepControl* control,
            StepOutcome* outcome, CudaStream stream) {
  launch("the decision", decide_step, 1, 1, stream, agreed, inputs, control, outcome);
}

}  // namespace fusedbun::FUSEDBUN_CUDA
