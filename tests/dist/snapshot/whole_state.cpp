#include "whole_state.h"

#include <functional>

namespace fusedbun::testing {
namespace {

/// Calls visit(field, tensor, first index, indices of the whole) for what a rank has of one parameter. The first dimension of a
/// tensor counts rows, or for columns the matrices.
void visit_rows(
    const ShardedFusedbun::OwnedRows& rows,
    const std::function<void(const std::string&, const at::Tensor&, int64_t, int64_t)>& visit) {
  const RowRange& range = rows.range;
  visit("values", rows.values, range.row_begin, range.rows_total);
  visit_tensors(*rows.state, [&](const std::string field, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!field.ends_with("_col")) return visit(field, tensor, range.row_begin, range.rows_total);
    const int64_t height = range.matrix_rows > 0 ? range.matrix_rows : range.rows_total;
    visit(field, tensor.view({-1, range.columns}),
          range.matrix_rows > 0 ? range.row_begin / height : 0, range.rows_total / height);
  });
}

}  // namespace

void WholeState::lay_in(const ShardedFusedbun& optimizer) {
  const std::lock_guard lock(mutex_);
  for (const auto& rows : optimizer.owned_rows()) {
    visit_rows(rows, [&](const std::string& field, const at::Tensor& tensor, int64_t first,
                         int64_t whole_size) {
      at::Tensor& whole = tensors_[{rows.name, field}];
      if (!whole.defined()) {
        std::vector<int64_t> shape = tensor.sizes().vec();
        shape[0] = whole_size;
        whole = at::full(shape, -1, tensor.options());
      }
      whole.narrow(0, first, tensor.size(0)).copy_(tensor);
    });
    step_counts_[rows.name] = rows.t;
  }
}

bool WholeState::has_values(const std::string& parameter, const at::Tensor& values) const {
  if (values.numel() == 0) return true;
  const auto whole = tensors_.find({parameter, "values"});
  return whole != tensors_.end() && at::equal(whole->second.view_as(values), values);
}

std::string WholeState::difference(const ShardedFusedbun& optimizer) const {
  std::string found;
  for (const auto& rows : optimizer.owned_rows()) {
    visit_rows(rows,
               [&](const std::string& field, const at::Tensor& tensor, int64_t first, int64_t) {
                 const auto whole = tensors_.find({rows.name, field});
                 if (whole == tensors_.end() ||
                     !at::equal(whole->second.narrow(0, first, tensor.size(0)), tensor)) {
                   if (found.empty()) found = rows.name + ": " + field;
                 }
               });
    if (step_counts_.at(rows.name) != rows.t && found.empty()) found = rows.name + ": t";
  }
  return found;
}

}  // namespace fusedbun::testing
