// This rank's state in a LibTorch archive: what it owns under its plan, and what all ranks hold alike. It is read back
// under the same plan only.
#include <ATen/core/grad_mode.h>
#include <torch/serialize/archive.h>

#include "fusedbun/core/error.h"
#include "fusedbun/core/option_fields.h"
#include "fusedbun/dist/step/engine.h"

namespace fusedbun {
namespace {

/// The structural options that differ, each as "accumulator"; empty if none does.
std::string structural_difference(const Options& saved, const Options& own) {
  std::string names;
  Options mine = own;
  visit_structure(saved, [&](const char* name, const auto& value) {
    visit_structure(mine, [&](const char* other, const auto& ours) {
      if constexpr (std::is_same_v<decltype(value), decltype(ours)>) {
        if (std::string_view(name) == other && value != ours) {
          names += (names.empty() ? "" : ", ") + std::string(name);
        }
      }
    });
  });
  return names;
}

}  // namespace

void StepEngine::save(torch::serialize::OutputArchive& archive) {
  at::NoGradGuard no_grad;
  archive.write("plan", c10::IValue(static_cast<int64_t>(plan::digest(model_.plan))));
  archive.write("rank", c10::IValue(static_cast<int64_t>(model_.rank)));
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    torch::serialize::OutputArchive group;
    model_.groups[g].options().serialize(group);
    archive.write("group." + std::to_string(g), group);
  }
  consensus_.save(archive);
  update_.save(archive);
}

void StepEngine::load(torch::serialize::InputArchive& archive) {
  at::NoGradGuard no_grad;
  finish_previous();
  c10::IValue plan_digest, rank;
  archive.read("plan", plan_digest);
  archive.read("rank", rank);
  const std::string here = "rank " + std::to_string(model_.rank) + ": ";
  FUSEDBUN_REQUIRE(
      plan_digest.toInt() == static_cast<int64_t>(plan::digest(model_.plan)) &&
          rank.toInt() == model_.rank,
      DataError,
      here + "the saved state is that of rank " + std::to_string(rank.toInt()) +
          " under a plan of its own; it is read back by the same rank of the same model and world "
          "size");
  // Everything is read and compared before anything is changed.
  std::vector<Options> saved;
  for (size_t g = 0; g < model_.groups.size(); ++g) {
    torch::serialize::InputArchive group;
    archive.read("group." + std::to_string(g), group);
    FusedbunOptions options(model_.group_options(g));
    options.serialize(group);
    const std::string different = structural_difference(options.values(), model_.group_options(g));
    FUSEDBUN_REQUIRE(different.empty(), DataError,
                     here + "the state of parameter group " + std::to_string(g) +
                         " was saved under other structural options (" + different +
                         "): make the optimizer with the options of the save");
    saved.push_back(options.values());
  }
  consensus_.load(archive);
  update_.load(archive);
  is_loaded_ = true;
  for (size_t g = 0; g < saved.size(); ++g) model_.group_options(g) = saved[g];
}

}  // namespace fusedbun
