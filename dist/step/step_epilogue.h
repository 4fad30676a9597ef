#pragma once
// The step message: what ranks tell each other once per job step off the critical path. Sent at the
// end of a step, read in the next: a header per rank, and the column statistics of split matrices
// (sums as float64, sm3's maxima as the integers of their float64 bits, which order as the numbers
// do and keep NaN on top, so MAX is exact), and the sums of squares that scale_by_parameter_rms
// needs.
//
// Invariants: 1. At most one message is under way. 2. The columns are complete on every rank after
// `wait_columns`; on a GPU for what its current stream is given from then on.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/plan/step_header.h"

namespace fusedbun {

class StepEpilogue {
 public:
  StepEpilogue(comm::Communicator& data, comm::Communicator& host, at::Device device);

  /// Sizes the columns for a plan; nothing may be under way.
  void resize(const plan::ColumnLayout& layout);

  /// Before a step's partials are added: all zero.
  void clear_columns();
  /// float64 [entries] of one parameter, from `offset` of the layout: sums are added here.
  at::Tensor sums(int64_t offset, int64_t entries) const;
  /// [entries] where one parameter's maxima lie as the bits of float64, for who writes them there itself.
  double* maxima_bits(int64_t offset) const {
    return reinterpret_cast<double*>(maxima_.data_ptr<int64_t>()) + offset;
  }
  /// Takes one parameter's maxima (arithmetic type, not negative) into the message.
  void put_maxima(int64_t offset, const at::Tensor& maxima);
  /// The reduced maxima as `type`.
  at::Tensor maxima(int64_t offset, int64_t entries, at::ScalarType type) const;

  /// One entry per parameter with scale_by_parameter_rms: the sum of its squares, at `offset` of
  /// the layout.
  at::Tensor square(int64_t offset) const { return sums(offset, 1); }

  void send_columns();
  void wait_columns();
  void send_squares();
  void settle_squares();

  void send_header(const plan::StepHeader& header);
  bool header_under_way() const { return header_work_.pending(); }
  /// Waits for and returns every rank's header of the last `send_header`.
  const std::vector<plan::StepHeader>& receive_headers();

 private:
  comm::Communicator& data_;
  comm::Communicator& host_;
  at::Device device_;
  at::Tensor sums_;  ///< float64: columns, then squares
  int64_t column_sums_ = 0;
  at::Tensor maxima_;  ///< int64, bits of float64
  std::vector<plan::StepHeader> headers_;
  plan::StepHeader sent_;
  comm::Work sum_work_, max_work_, square_work_, header_work_;
};

}  // namespace fusedbun
