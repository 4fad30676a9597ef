#pragma once
// ParameterMatrix: the one owner of the question "what is this parameter now?". It holds the user's tensor, shows it as the
// contiguous n×m matrix whose rows are divided over the ranks, and knows what the tensor was when the optimizer left it.
//
// A contiguous parameter is seen through a view, so writing rows writes the parameter. Any other is staged: `refresh`
// reads it into a contiguous copy, `write_back` writes it after the step.
//
// In a host window the parameter's memory is a replica that all ranks of the host share (`share`). A program that gives
// the parameter new memory (torch::load, set_data) takes it out of the replica; then the owners of its rows copy their rows into
// the replica (`copy_into_replica`), and `return_to_replica` gives the parameter the replica's memory again.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "fusedbun/core/tensor_snapshot.h"
#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun {

class ParameterMatrix {
 public:
  ParameterMatrix(at::Tensor parameter, const plan::ParameterSpec& spec);

  /// What the program has done to the tensor since remember(): nothing, other values, or other memory.
  TensorSnapshot::Difference foreign_write() const { return left_.difference(parameter_); }
  /// Why the tensor cannot be stepped as it is now ("was float32 ... and is float64 now"), or nothing.
  std::optional<std::string> why_unusable() const;

  /// The matrix shows the tensor as it is now. Call before a step.
  void refresh();
  /// The tensor is not contiguous, so the matrix is a copy.
  bool is_staged() const { return staged_; }
  /// A staged matrix is copied into the tensor.
  void write_back();
  /// Tells autograd that this step writes the parameter: a graph that saved its values cannot run backward any more.
  void bump_version();
  /// The tensor is as the optimizer leaves it: the base of the next foreign_write().
  void remember() { left_ = TensorSnapshot(parameter_, TensorSnapshot::Sampling::few); }

  /// The tensor's present memory is a replica that other processes map as well.
  void share() { replica_ = parameter_.detach(); }
  bool is_shared() const { return replica_.defined(); }
  /// The program gave the parameter other memory than the replica's.
  bool has_left_replica() const {
    return is_shared() && parameter_.const_data_ptr() != replica_.const_data_ptr();
  }
  /// Rows of the tensor's own memory go into the replica, which the matrix then shows.
  void copy_into_replica(const RowRange& range);
  void copy_into_replica() { replica_.copy_(parameter_.detach()); }
  void return_to_replica();

  /// [range.rows(), m], contiguous; shares memory with the matrix.
  at::Tensor rows(const RowRange& range) const;
  const at::Tensor& matrix() const { return matrix_; }
  const at::Tensor& parameter() const { return parameter_; }

 private:
  at::Tensor parameter_;  ///< the user's tensor
  int64_t rows_, columns_;
  at::ScalarType type_;
  std::vector<int64_t> shape_;
  at::Device device_;
  at::Tensor matrix_;            ///< [n, m]
  const void* bound_ = nullptr;  ///< the memory that the matrix shows or was read from
  bool staged_ = false;
  at::Tensor replica_;  ///< of the parameter's shape; undefined without a host window
  TensorSnapshot left_;
};

}  // namespace fusedbun
