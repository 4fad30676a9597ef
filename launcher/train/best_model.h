#pragma once
// BestModel: the weights of the best validation, in a file of the run folder while training goes on, and the model's at the end. The file is
// written atomically; what the disk does costs a notice, never the run.
//
// Thread safety: none; rank 0's training thread.
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/train/early_stopping.h"

namespace fusedbun::train {

class BestModel {
 public:
  using Notice = std::function<void(const std::string& sentence)>;

  /// `known` is the best validation of the checkpoint that a run goes on from: the file is kept if it is of that one. Any other is of
  /// steps that are done anew, or of another run, and is removed. The model outlives this object.
  BestModel(std::filesystem::path path, model::CausalLm& model,
            const std::optional<BestValidation>& known, Notice notice);

  /// After a validation: writes the model as it is now if its loss is below that of the file.
  void consider(const BestValidation& validation);
  /// After the last step. Unless `last`, the validation of the model as it is now, is as good as the file's, gives the model the file's
  /// weights. Returns of which validation the model is now; nothing where that is not known.
  std::optional<BestValidation> restore(const std::optional<BestValidation>& last);
  /// Removes the file, when the run is finished and its model is saved.
  void remove();

 private:
  std::filesystem::path path_;
  model::CausalLm& model_;
  std::optional<BestValidation> kept_;  ///< of the file; none: there is no file
  Notice notice_;
};

}  // namespace fusedbun::train
