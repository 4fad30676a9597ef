#pragma once
// DeviceStep: the fused step of many parameters on one GPU by a few launches, whatever their number (step_cuda.h). Everything that it is
// told goes to the device with one copy per step; nothing comes back but the outcome, which nobody waits for.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <array>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/core/gpu/step_table_layout.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun {

/// Rows of one parameter that are stepped together. Parts of a parameter follow one another.
struct DevicePart {
  int parameter = 0;  ///< its index among the optimizer's parameters
  int group = 0;      ///< parts that are stepped by one launch; ascending
  RowRange range;
  at::Tensor rows;     ///< [rows, m], contiguous, the parameter's own type
  SegmentState state;  ///< of these rows
  Options options;
  int64_t parameter_elements = 0;
  /// [column entries] float64 on the device, where column totals are left for other ranks to add to; null: other ranks have no rows.
  double* totals = nullptr;
  /// On the device, with scale_by_parameter_rms: the sum of squares of the parameter's values, and that of the new ones.
  double* squares = nullptr;
  double* new_squares = nullptr;
};

/// True if a DeviceStep takes such a parameter; where not, LibTorch's operations step it (step_reference.h).
bool has_device_step(const Options& options, at::ScalarType parameter);

/// The factors of a parameter's step t, t - 1, ... (StepTable: how many steps of those under way were skipped, the device knows).
using StepScalarsUnderWay = std::array<StepScalars, device::kStepsUnderWay>;

/// The factors of one step, once for all parameters that share options and t.
class StepFactorSets {
 public:
  /// The number of the set for a parameter whose step `t` this is; `options` stay where they are.
  int32_t number_of(const Options& options, int64_t t);
  const std::vector<StepScalarsUnderWay>& sets() const { return sets_; }

 private:
  std::map<std::pair<const Options*, int64_t>, int32_t> numbers_;
  std::vector<StepScalarsUnderWay> sets_;
};

class DeviceStep {
 public:
  /// All on `device`; control outlives this. The tables are uploaded on `stream`.
  DeviceStep(DeviceApi& api, at::Device device, std::vector<DevicePart> parts,
             device::StepControl* control, CudaStream stream);

  /// What the next step is given. `factors_of`: by part, which of `factors` are its parameter's, or -1: it is not stepped. Parts that share
  /// factors have the same options.
  void set_inputs(const device::StepInputs& inputs, std::span<const int32_t> factors_of,
                  std::span<const StepScalarsUnderWay> factors, CudaStream stream);
  /// The gradients of the parts from `first_part` on, [rows, m] each, until they are said anew; those of a part that is not stepped may be
  /// null.
  void set_gradients(int first_part, std::span<const device::Gradient> gradients,
                     CudaStream stream);
  const device::StepInputs* inputs() const {
    return reinterpret_cast<const device::StepInputs*>(inputs_);
  }

  /// The parts of a step (step_cuda.h); begin leaves what `collect` does behind it.
  void absorb(bool with_squares, CudaStream stream);
  void prepare(CudaStream stream);
  void begin(int group, CudaStream stream);
  /// Some parts of the group are not stepped before other ranks' column totals are here: absorb, prepare and finish follow.
  bool has_finish(int group) const;
  void finish(int group, CudaStream stream);
  /// new_squares of all parts := those of the parameters as they are; the next absorb takes them.
  void measure(CudaStream stream);

  const std::vector<DevicePart>& parts() const { return parts_; }
  int group_count() const { return parts_.empty() ? 0 : parts_.back().group + 1; }
  /// Bytes of tables and scratch memory.
  int64_t memory_bytes() const;

 private:
  template <class T>
  struct Table {
    device::StepTableLayout<T> layout;
    std::vector<int32_t> part_of;                           ///< [segment]
    std::vector<int32_t> part_of_matrix;                    ///< [matrix] one of its
    std::map<std::pair<int, const T*>, int32_t> matrix_of;  ///< by parameter and col
    device::StepTable<T> on_device;
    /// Where they lie among the inputs, bytes.
    int64_t factors_of = 0, gradients = 0, factors = 0;
  };
  template <class T>
  void lay_out(Table<T>& table);
  template <class T>
  void add_part(Table<T>& table, int32_t index);
  template <class T>
  void place_columns(Table<T>& table, CudaStream stream);
  template <class T>
  void upload(Table<T>& table, CudaStream stream);
  template <class T>
  void stage(const Table<T>& table, std::span<const int32_t> factors_of);
  template <class T>
  void set_gradients(const Table<T>& table, int first_part,
                     std::span<const device::Gradient> gradients, CudaStream stream);
  template <class T>
  void upload_factors(const Table<T>& table, std::span<const int32_t> factors_of,
                      std::span<const StepScalarsUnderWay> factors, CudaStream stream);
  template <class T, class Launch>
  void launch_group(const Table<T>& table, int group, CudaStream stream, Launch launch);
  template <class T>
  void absorb(const Table<T>& table, bool with_squares, CudaStream stream);
  template <class T>
  void prepare(const Table<T>& table, CudaStream stream);
  template <class Visit>
  void for_each_table(Visit visit) {
    visit(f32_);
    visit(f64_);
  }
  std::byte* allocate(int64_t bytes);
  int64_t take_inputs(int64_t bytes);

  DeviceApi& api_;
  const at::Device device_;
  const std::vector<DevicePart> parts_;
  device::StepControl* const control_;
  Table<float> f32_;
  Table<double> f64_;
  std::vector<DeviceMemory> memory_;
  int64_t input_bytes_ = 0;
  std::byte* inputs_ = nullptr;    ///< on the device: StepInputs, then those of the tables
  std::vector<std::byte> staged_;  ///< the same on the host, but the factors; gradients as uploaded
  int64_t first_gradient_ = 0;     ///< before it lies what each step uploads as a whole, bytes
};

}  // namespace fusedbun
