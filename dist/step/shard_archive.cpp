// This rank's state in a LibTorch archive: what it owns under its plan, and what all ranks hold
// alike. It is read back under the same plan only.
#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {
void StepEngine::save(torch::serialize::OutputArchive& archive) {
  at::NoGradGuard no_grad;
  absorb_pending_columns();
  archive.write("plan", c10::IValue(static_cast<int64_t>(plan::digest(plan_))));
  archive.write("rank", c10::IValue(static_cast<int64_t>(rank_)));
  archive.write("job_step", c10::IValue(job_step_));
  archive.write("skipped_steps", c10::IValue(skipped_steps_));
  archive.write("t", at::tensor(t_, at::kLong), /*is_buffer=*/true);
  archive.write("sum_of_squares", at::tensor(sum_of_squares_, at::kDouble), /*is_buffer=*/true);
  for (size_t g = 0; g < groups_.size(); ++g) {
    torch::serialize::OutputArchive group;
    groups_[g].options().serialize(group);
    archive.write("group." + std::to_string(g), group);
  }
  for (auto& bucket : owned_) {
    for (OwnedSegment& owned : bucket) {
      torch::serialize::OutputArchive segment;
      visit_tensors(owned.state, [&](const char* name, at::Tensor& tensor) {
        if (tensor.defined()) segment.write(name, tensor, /*is_buffer=*/true);
      });
      archive.write("segment." + std::to_string(owned.where.parameter), segment);
    }
  }
}

void StepEngine::load(torch::serialize::InputArchive& archive) {
  at::NoGradGuard no_grad;
  settle_previous();
  c10::IValue plan_digest, rank, job_step, skipped;
  archive.read("plan", plan_digest);
  archive.read("rank", rank);
  FUSEDBUN_REQUIRE(
      plan_digest.toInt() == static_cast<int64_t>(plan::digest(plan_)) && rank.toInt() == rank_,
      DataError,
      "rank " + std::to_string(rank_) + ": the saved state is that of rank " +
          std::to_string(rank.toInt()) +
          " under a plan of its own; it is read back by the same rank of the same model and world "
          "size");
  archive.read("job_step", job_step);
  archive.read("skipped_steps", skipped);
  job_step_ = job_step.toInt();
  skipped_steps_ = skipped.toInt();
  at::Tensor t, sum_of_squares;
  archive.read("t", t, true);
  archive.read("sum_of_squares", sum_of_squares, true);
  t_.assign(t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel());
  sum_of_squares_.assign(sum_of_squares.const_data_ptr<double>(),
                         sum_of_squares.const_data_ptr<double>() + sum_of_squares.numel());
  for (size_t g = 0; g < groups_.size(); ++g) {
    torch::serialize::InputArchive group;
    archive.read("group." + std::to_string(g), group);
    groups_[g].options().serialize(group);
  }
  for (auto& bucket : owned_) {
    for (OwnedSegment& owned : bucket) {
      torch::serialize::InputArchive segment;
      archive.read("segment." + std::to_string(owned.where.parameter), segment);
      visit_tensors(owned.state, [&](const char* name, at::Tensor& tensor) {
        at::Tensor saved;
        const bool is_saved = segment.try_read(name, saved, /*is_buffer=*/true);
        FUSEDBUN_REQUIRE(is_saved == tensor.defined(), DataError,
                         "rank " + std::to_string(rank_) + ": the saved state of '" +
                             parameters_[owned.where.parameter].name + "' " +
                             (is_saved ? "has" : "lacks") + " a " + name +
                             ": it was saved under other structural options");
        if (is_saved) tensor.copy_(saved);
      });
    }
  }
}

}  // namespace fusedbun
