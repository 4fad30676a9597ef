#pragma once
// A GPT-2 whose file stands alone: its sizes are the shapes of its tensors, except for the number of heads, which no shape shows. We write that
// as metadata; for files without it the caller must give it.
//
// Thread safety: pure functions.
#include <optional>
#include <string>

#include "fusedbun/launcher/model/hf_weights.h"

namespace fusedbun::model {

/// A number of heads that did not come from the model's file, and who says so: "--heads".
struct HeadsSaid {
  int64_t heads;
  std::string by;
};

struct FoundSizes {
  Gpt2Config config;
  bool heads_are_assumed;  ///< neither file nor caller gave them: 64 wide, as in all of OpenAI's
};

/// The sizes of the model in `files`. Throws DataError if this is no GPT-2, ConfigError if `said` contradicts the file's metadata.
FoundSizes sizes_of(const WeightFiles& files, const std::optional<HeadsSaid>& said);

/// What a file of this model says beside its tensors: GPT-2's number of heads.
checkpoint::Metadata metadata_of(const CausalLm& model);

}  // namespace fusedbun::model
