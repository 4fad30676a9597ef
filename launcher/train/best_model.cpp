#include "fusedbun/launcher/train/best_model.h"

#include <torch/utils.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <system_error>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/hf_weights.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepName = "fusedbun.step";
constexpr const char* kLossName = "fusedbun.validation_loss";

std::string exact_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

/// As metadata of a file says it, so that it is recognised.
checkpoint::Metadata metadata_with(checkpoint::Metadata metadata,
                                   const BestValidation& validation) {
  metadata[kStepName] = std::to_string(validation.job_step);
  metadata[kLossName] = exact_text(validation.loss);
  return metadata;
}

bool is_of(const checkpoint::Metadata& metadata, const BestValidation& validation) {
  const auto says = [&](const char* name, const std::string& text) {
    const auto found = metadata.find(name);
    return found != metadata.end() && found->second == text;
  };
  return says(kStepName, std::to_string(validation.job_step)) &&
         says(kLossName, exact_text(validation.loss));
}

std::string described(const BestValidation& validation) {
  char text[64];
  std::snprintf(text, sizeof text, "validation loss %.4f after %lld steps", validation.loss,
                static_cast<long long>(validation.job_step));
  return text;
}

}  // namespace

BestModel::BestModel(fs::path path, model::CausalLm& model,
                     const std::optional<BestValidation>& known, Notice notice)
    : path_(std::move(path)), model_(model), notice_(std::move(notice)) {
  if (known) {
    try {
      if (is_of(model::WeightFiles(path_).metadata(), *known)) kept_ = known;
    } catch (const Error&) {  // then it is not there for us
    }
    if (!kept_)
      notice_("the weights of the best validation so far (" + described(*known) + ") are not in " +
              path_.string() + ": the best from here on are kept");
  }
  if (!kept_) remove();
}

void BestModel::consider(const BestValidation& validation) {
  if (!(validation.loss < (kept_ ? kept_->loss : INFINITY))) return;
  try {
    model::save_weights(path_, model_, metadata_with(model::metadata_of(model_), validation));
    kept_ = validation;
  } catch (const IoError& error) {
    notice_(std::string(error.what()) + "; the run goes on without the weights of " +
            described(validation) +
            (kept_ ? ", and with those of " + described(*kept_) : std::string()));
  }
}

std::optional<BestValidation> BestModel::restore(const std::optional<BestValidation>& last) {
  if (!kept_ || (last && last->loss <= kept_->loss)) return last;
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> present;  // put back if the file proves to be damaged
  for (const torch::Tensor& parameter : model_.parameters())
    present.push_back(parameter.detach().clone());
  try {
    model::load_weights(model::WeightFiles(path_), model_);
    return kept_;
  } catch (const Error& error) {
    std::vector<torch::Tensor> parameters = model_.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) parameters[i].copy_(present[i]);
    notice_(std::string(error.what()) + "; the weights of the last step are saved in place of " +
            described(*kept_));
    return last;
  }
}

void BestModel::remove() {
  std::error_code ignored;
  fs::remove(path_, ignored);
}

}  // namespace fusedbun::train
