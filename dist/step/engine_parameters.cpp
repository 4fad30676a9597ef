// What the program does to parameters between two steps, and how every rank comes to have the same.
#include <ATen/core/grad_mode.h>

#include <exception>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {

// The ranks have agreed that all of them made the same changes, so each takes its own tensor as the truth.
void StepEngine::follow_parameters() {
  for (const int p : changes_.written()) {
    ParameterMatrix& matrix = model_.matrices[p];
    update_.follow(p);
    if (!matrix.has_left_replica()) continue;
    // The other owners of its rows have copied theirs too when this step's rows are complete.
    update_.copy_into_replica(p);
    matrix.return_to_replica();
  }
}

// What was written between the last step and the save is in the saved parameters, and not in the saved masters and norms. Not
// before the next step: the program may load the model after the optimizer. Before the agreement: after it, other ranks
// may write a replica.
void StepEngine::follow_loaded() {
  if (!is_loaded_) return;
  for (int p = 0; p < model_.parameter_count(); ++p) {
    // One of another type or shape is refused by the agreement.
    if (!model_.matrices[p].why_unusable()) update_.follow(p);
  }
  is_loaded_ = false;
}

void StepEngine::write_parameters(const std::function<void()>& write) {
  at::NoGradGuard no_grad;
  guarded([&] {
    // All ranks are here, so none is still reading what is about to be written.
    agree_on_call(plan::OptimizerCall::write_parameters);
    std::string error, unusable;
    if (model_.rank == 0) {
      try {
        write();
      } catch (const std::exception& failure) {
        error = failure.what();
      }
      for (int p = 0; p < model_.parameter_count() && unusable.empty(); ++p) {
        const auto why = model_.matrices[p].why_unusable();
        if (why) unusable = "parameter '" + model_.name(p) + "' " + *why;
      }
    }
    error = comm::broadcast_text(*control_stream_, error, 0);
    unusable = comm::broadcast_text(*control_stream_, unusable, 0);
    // Also what `write` did before it failed is the same everywhere.
    if (unusable.empty()) take_values_of_rank_zero();
    if (error.empty() && unusable.empty()) return;
    refused_ = true;
    throw ConfigError("write_parameters: " + (error.empty() ? unusable : error));
  });
}

void StepEngine::take_values_of_rank_zero() {
  for (ParameterMatrix& matrix : model_.matrices) {
    if (!matrix.is_shared()) continue;
    if (model_.rank == 0) matrix.copy_into_replica();
    matrix.return_to_replica();
  }
  broadcast_parameters(0);
  control_stream_->barrier().wait();  // rank 0's values are in the replica
  for (int p = 0; p < model_.parameter_count(); ++p) {
    ParameterMatrix& matrix = model_.matrices[p];
    matrix.bump_version();
    update_.follow(p);
    matrix.refresh();
    matrix.remember();
  }
}

// A parameter that the program gave other memory comes back, with the values that it has now.
void StepEngine::return_to_replicas() {
  for (int p = 0; p < model_.parameter_count(); ++p) {
    if (model_.matrices[p].has_left_replica()) update_.copy_into_replica(p);
  }
  control_stream_->barrier()
      .wait();  // the replica has every owner's rows, and nobody reads what is about to be written
  for (ParameterMatrix& matrix : model_.matrices) {
    if (matrix.has_left_replica()) matrix.return_to_replica();
    matrix.refresh();
  }
}

// Every rank has written the rows that it owns.
void StepEngine::gather_parameters() {
  const std::vector<bool> all(model_.registered.size(), true);
  for (int bucket = 0; bucket < model_.bucket_count(); ++bucket) {
    const std::vector<int>& parameters = model_.plan.buckets[bucket].parameters;
    if (model_.matrices[parameters.front()].is_shared()) continue;
    comm::Work rows =
        model_.buckets[bucket]->start_param_sync(model_.matrices, all, collector_.round(bucket));
    wait_for(rows, model_.device);
    comm::Work relayed = model_.buckets[bucket]->relay_rows(model_.matrices, all);
    wait_for(relayed, model_.device);
    model_.buckets[bucket]->finish_param_sync(model_.matrices, all);
  }
  control_stream_->barrier().wait();  // where ranks share a replica, each has written its rows
  for (ParameterMatrix& matrix : model_.matrices) {
    matrix.bump_version();
    matrix.write_back();
    matrix.remember();
  }
}

void StepEngine::broadcast_parameters(size_t first) {
  at::NoGradGuard no_grad;
  // Not among the gradients: between backward and step() ranks may have started different numbers of buckets.
  comm::Communicator& stream = model_.on_gpu() ? *gradient_stream_ : *control_stream_;
  for (size_t p = first; p < model_.matrices.size(); ++p) {
    ParameterMatrix& matrix = model_.matrices[p];
    if (matrix.matrix().numel() == 0 || matrix.is_shared()) continue;
    matrix.refresh();
    const at::Tensor& values = matrix.matrix();
    comm::Work work = stream.broadcast(
        {values.data_ptr(), static_cast<int64_t>(values.nbytes()), comm::DataType::u8}, 0,
        current_stream(model_.device));
    wait_for(work, model_.device);
    matrix.write_back();
  }
}

}  // namespace fusedbun
