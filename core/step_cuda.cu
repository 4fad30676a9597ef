#include "fusedbun/core/step_cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fused_pass.h"

namespace fusedbun {
namespace {

using fused::MomentumKind;
using fused::PassArguments;
using fused::PassKind;

constexpr int kThreads = 256;  // of a block that works on one row
constexpr int kColumnsPerBlock =
    32;  // of a block that works on columns: 32 columns × 8 rows at a time
constexpr int kRowsPerBlock = 8;

void require_success(cudaError_t status, const char* what) {
  FUSEDBUN_REQUIRE(
      status == cudaSuccess, DeviceError,
      std::string("the CUDA step could not run ") + what + ": " + cudaGetErrorString(status));
}

// --- arithmetic that the compiler may not contract ----------------------------------------------

__device__ float mul(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ double mul(double a, double b) {
  return __dmul_rn(a, b);
}
__device__ float add(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ double add(double a, double b) {
  return __dadd_rn(a, b);
}
__device__ float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
__device__ double divide(double a, double b) {
  return __ddiv_rn(a, b);
}
__device__ float root(float a) {
  return __fsqrt_rn(a);
}
__device__ double root(double a) {
  return __dsqrt_rn(a);
}
__device__ float magnitude(float a) {
  return fabsf(a);
}
__device__ double magnitude(double a) {
  return fabs(a);
}

// Keeps NaN, as fmax and fmin do not.
template <class T>
__device__ T larger(T a, T b) {
  return a > b || a != a ? a : b;
}
template <class T>
__device__ T smaller(T a, T b) {
  return a < b || a != a ? a : b;
}

// One value per thread of a block of kThreads, combined in a fixed tree; every thread gets the result.
template <class T, class Combine>
__device__ T over_block(T value, Combine combine) {
  __shared__ T shared[kThreads];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width)
      shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + width]);
    __syncthreads();
  }
  const T result = shared[0];
  __syncthreads();  // before the next use of the array
  return result;
}

// --- one element --------------------------------------------------------------------------------

template <class T>
__device__ T averaged(const PassArguments<T>& a, int64_t element) {
  return mul(divide(static_cast<const T*>(a.gradient)[element], a.gradient_divisor),
             a.gradient_scale);
}

// Steps 0 and 1; `row_means` is null unless the rows are centred.
template <class T>
__device__ T final_gradient(const PassArguments<T>& a, const double* row_means, int64_t row,
                            int64_t element) {
  const T g = averaged(a, element);
  return row_means == nullptr ? g
                              : static_cast<T>(__dsub_rn(static_cast<double>(g), row_means[row]));
}

template <class T>
__device__ T with_momentum(const PassArguments<T>& a, int64_t element, T x) {
  const T weighted = mul(x, a.momentum_rest);
  if (a.momentum_is_bf16) {
    auto* stored = static_cast<__nv_bfloat16*>(a.momentum) + element;
    const T fresh = add(mul(static_cast<T>(__bfloat162float(*stored)), a.momentum_beta), weighted);
    *stored = __float2bfloat16_rn(static_cast<float>(fresh));
    return fresh;
  }
  T* stored = static_cast<T*>(a.momentum) + element;
  return *stored = add(mul(*stored, a.momentum_beta), weighted);
}

// Step 3.
template <class T>
__device__ T masked(const PassArguments<T>& a, T g) {
  return a.masked && magnitude(g) <= a.eps ? T{0} : g;  // NaN is not <= eps and stays
}

// Step 4 for one element: its estimate V, and s, what the means take in. `g` is masked, `P` reconstructed.
template <class T>
struct SecondMomentOf {
  T v;
  T s;
  __device__ SecondMomentOf(const PassArguments<T>& a, T g, T P) {
    s = mul(g, g);
    v = add(mul(P, a.beta), mul(s, a.beta_rest));
    if (a.held && !(magnitude(g) > a.eps)) v = s = P;
  }
};

template <class T, PassKind kKind>
__device__ T reconstructed(const PassArguments<T>& a, T r, int64_t column, int64_t element) {
  if constexpr (kKind == PassKind::full) return a.moment.full[element];
  if constexpr (kKind == PassKind::sm3) return smaller(r, a.moment.column_values[column]);
  if constexpr (kKind == PassKind::mean) return mul(r, a.moment.column_values[column]);
  return T{0};
}

// Steps 6 to 9.
template <class T>
__device__ void update(const PassArguments<T>& a, int64_t element, T u) {
  if (a.momentum_kind == MomentumKind::of_update) u = with_momentum(a, element, u);
  T p = a.parameter[element];
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(a.low_precision_parameter);
  if (rounded != nullptr) {
    // The master follows a parameter that is no longer its rounding, because the program has written it. The rule is the CPU
    // pass's (step_cpu_vector.inc): within half a unit of the parameter's last place, as the bits order.
    const float written = __bfloat162float(rounded[element]);
    const unsigned apart = __float_as_uint(static_cast<float>(p)) - __float_as_uint(written);
    if (apart + 0x8000u > 0x10000u) p = static_cast<T>(written);
  }
  p = add(mul(p, a.keep), -mul(u, a.step));
  a.parameter[element] = p;
  if (rounded != nullptr) rounded[element] = __float2bfloat16_rn(static_cast<float>(p));
}

// --- kernels ------------------------------------------------------------------------------------

// c_j / mean(c) into `values` (one block).
template <class T>
__global__ void column_shares(const T* col, int64_t columns, T* values) {
  double sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += kThreads) sum += static_cast<double>(col[j]);
  const double mean =
      over_block(sum, [](double x, double y) { return x + y; }) / static_cast<double>(columns);
  for (int64_t j = threadIdx.x; j < columns; j += kThreads) {
    values[j] = mean == 0 ? T{0} : static_cast<T>(static_cast<double>(col[j]) / mean);
  }
}

// sqrt(v_j) + eps into `values`.
template <class T>
__global__ void column_denominators(PassArguments<T> a, const T* col, T* values) {
  const int64_t j = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (j < a.columns) values[j] = add(root(mul(col[j], a.second_moment_scale)), a.eps);
}

template <class T>
__global__ void row_means_of(PassArguments<T> a, double* means) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double sum = 0;
    for (int64_t j = threadIdx.x; j < a.columns; j += kThreads) {
      sum += static_cast<double>(averaged(a, row * a.columns + j));
    }
    const double total = over_block(sum, [](double x, double y) { return x + y; });
    if (threadIdx.x == 0) means[row] = total / static_cast<double>(a.columns);
  }
}

// The column partials; runs before the rows' own statistics change. Each block owns its columns.
template <class T, PassKind kKind>
__global__ void column_partials(PassArguments<T> a, const double* row_means) {
  using Partial = std::conditional_t<kKind == PassKind::sm3, T, double>;
  __shared__ Partial shared[kRowsPerBlock][kColumnsPerBlock];
  const int64_t column = blockIdx.x * static_cast<int64_t>(kColumnsPerBlock) + threadIdx.x;
  Partial partial = 0;
  for (int64_t row = threadIdx.y; row < a.rows && column < a.columns; row += kRowsPerBlock) {
    const int64_t element = row * a.columns + column;
    const T g = masked(a, final_gradient(a, row_means, row, element));
    const T r = kKind == PassKind::statistics ? T{0} : a.moment.row[row];
    if constexpr (kKind == PassKind::statistics) {
      partial += static_cast<double>(mul(g, g));
    } else {
      const SecondMomentOf<T> moment(a, g, reconstructed<T, kKind>(a, r, column, element));
      if constexpr (kKind == PassKind::sm3) {
        partial = larger(partial, moment.v);
      } else {
        partial += static_cast<double>(moment.s);
      }
    }
  }
  shared[threadIdx.y][threadIdx.x] = partial;
  __syncthreads();
  if (threadIdx.y != 0 || column >= a.columns) return;
  for (int i = 1; i < kRowsPerBlock; ++i) {
    const Partial other = shared[i][threadIdx.x];
    if constexpr (kKind == PassKind::sm3)
      partial = larger(partial, other);
    else
      partial += other;
  }
  if constexpr (kKind == PassKind::sm3) {
    a.moment.column_maxima[column] =
        magnitude(larger(a.moment.column_maxima[column], partial));  // a NaN without its sign
  } else {
    a.moment.column_sums[column] += partial;
  }
}

// The update of mean, sm3 and columns, a block per row, and the row's new statistics.
template <class T, PassKind kKind>
__global__ void update_rows(PassArguments<T> a, const double* row_means) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T r = kKind == PassKind::columns ? T{0} : a.moment.row[row];
    double sum = 0;
    T top = 0;
    for (int64_t j = threadIdx.x; j < a.columns; j += kThreads) {
      const int64_t element = row * a.columns + j;
      const T g = masked(a, final_gradient(a, row_means, row, element));
      T u = g;
      if constexpr (kKind == PassKind::columns) {
        if (a.use_rms) u = divide(g, a.moment.column_values[j]);
      } else {
        const SecondMomentOf<T> moment(a, g, reconstructed<T, kKind>(a, r, j, element));
        sum += static_cast<double>(moment.s);
        top = larger(top, moment.v);
        if (a.use_rms) u = divide(g, add(root(mul(moment.v, a.second_moment_scale)), a.eps));
      }
      update(a, element, u);
    }
    if constexpr (kKind == PassKind::mean) {
      const double mean = over_block(sum, [](double x, double y) { return x + y; }) /
                          static_cast<double>(a.columns);
      if (threadIdx.x == 0) {
        a.moment.row[row] = static_cast<T>(__dadd_rn(__dmul_rn(a.row_beta, static_cast<double>(r)),
                                                     __dmul_rn(1 - a.row_beta, mean)));
      }
    } else if constexpr (kKind == PassKind::sm3) {
      const T total = over_block(top, [](T x, T y) { return larger(x, y); });
      if (threadIdx.x == 0) a.moment.row[row] = magnitude(total);
    }
  }
}

// The update with an element's own second moment; rows matter only to their means.
template <class T>
__global__ void update_elements(PassArguments<T> a, const double* row_means) {
  const int64_t count = a.rows * a.columns;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    T g = final_gradient(a, row_means, i / a.columns, i);
    if (a.momentum_kind == MomentumKind::of_gradient)
      g = mul(with_momentum(a, i, g), a.momentum_scale);
    g = masked(a, g);
    const SecondMomentOf<T> moment(a, g, a.moment.full[i]);
    a.moment.full[i] = moment.v;
    update(a, i, a.use_rms ? divide(g, add(root(mul(moment.v, a.second_moment_scale)), a.eps)) : g);
  }
}

// --- launches -----------------------------------------------------------------------------------

int blocks_for(int64_t work) {
  constexpr int64_t kMost = 65535;  // kernels take strides, so this is no limit on sizes
  return static_cast<int>(std::clamp<int64_t>(work, 1, kMost));
}

// The memory that a part of a step borrows: [rows] float64 row means, then [m] column values.
template <class T>
struct Scratch {
  double* row_means;
  T* column_values;
  Scratch(void* memory, int64_t rows)
      : row_means(static_cast<double*>(memory)),
        column_values(reinterpret_cast<T*>(row_means + rows)) {}
};

template <class T>
const double* launch_row_means(const PassArguments<T>& a, const Scratch<T>& scratch,
                               cudaStream_t stream) {
  if (!a.centralize) return nullptr;
  row_means_of<T><<<blocks_for(a.rows), kThreads, 0, stream>>>(a, scratch.row_means);
  return scratch.row_means;
}

template <class T, PassKind kKind>
void launch_partials(const PassArguments<T>& a, const double* row_means, cudaStream_t stream) {
  const int64_t blocks = (a.columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  FUSEDBUN_REQUIRE(blocks <= 2147483647, DeviceError,
                   "a matrix has more columns than the CUDA step can launch");
  column_partials<T, kKind>
      <<<static_cast<unsigned>(blocks), dim3(kColumnsPerBlock, kRowsPerBlock), 0, stream>>>(
          a, row_means);
}

template <class T, PassKind kKind>
void launch_local(const PassArguments<T>& a, const double* row_means, cudaStream_t stream) {
  launch_partials<T, kKind>(a, row_means, stream);
  update_rows<T, kKind><<<blocks_for(a.rows), kThreads, 0, stream>>>(a, row_means);
}

}  // namespace

int64_t cuda_scratch_bytes(const RowRange& range) {
  return (range.rows() + range.columns) * static_cast<int64_t>(sizeof(double));
}

template <class T>
void cuda_begin(PassArguments<T> a, void* memory, CudaStream on) {
  if (a.rows * a.columns == 0) return;
  const auto stream = static_cast<cudaStream_t>(on.handle());
  const Scratch<T> scratch(memory, a.rows);
  const double* row_means = launch_row_means(a, scratch, stream);
  switch (a.kind) {
    case PassKind::full:
      update_elements<T>
          <<<blocks_for((a.rows * a.columns + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
              a, row_means);
      break;
    case PassKind::mean:
      column_shares<T><<<1, kThreads, 0, stream>>>(a.moment.col, a.columns, scratch.column_values);
      a.moment.column_values = scratch.column_values;
      launch_local<T, PassKind::mean>(a, row_means, stream);
      break;
    case PassKind::sm3:
      a.moment.column_values = a.moment.col;
      launch_local<T, PassKind::sm3>(a, row_means, stream);
      break;
    case PassKind::statistics:
      launch_partials<T, PassKind::statistics>(a, row_means, stream);
      break;
    case PassKind::columns:
      FUSEDBUN_ASSERT(false, "a step does not begin with the columns' denominators");
  }
  require_success(cudaGetLastError(), "the first part of a step");
}

template <class T>
void cuda_finish(PassArguments<T> a, void* memory, CudaStream on) {
  if (a.rows * a.columns == 0) return;
  const auto stream = static_cast<cudaStream_t>(on.handle());
  const Scratch<T> scratch(memory, a.rows);
  const double* row_means = launch_row_means(a, scratch, stream);
  column_denominators<T>
      <<<static_cast<unsigned>((a.columns + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
          a, a.moment.col, scratch.column_values);
  a.moment.column_values = scratch.column_values;
  update_rows<T, PassKind::columns><<<blocks_for(a.rows), kThreads, 0, stream>>>(a, row_means);
  require_success(cudaGetLastError(), "the second part of a step");
}

template void cuda_begin<float>(PassArguments<float>, void*, CudaStream);
template void cuda_begin<double>(PassArguments<double>, void*, CudaStream);
template void cuda_finish<float>(PassArguments<float>, void*, CudaStream);
template void cuda_finish<double>(PassArguments<double>, void*, CudaStream);

}  // namespace fusedbun
