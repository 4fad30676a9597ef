#pragma once
// The parameters of a model that a run leaves as they are: no gradient is computed for them, no state kept, and nothing of them travels.
//
// Thread safety: as the model.
#include <cstdint>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/launcher/model/causal_lm.h"

namespace fusedbun::train {

/// Freezes what `patterns` match (freezing.h). Its values must be the same on all ranks, for no rank sends its own. Collective; throws
/// ConfigError on all ranks.
void freeze_parameters(const std::vector<std::string>& patterns, model::CausalLm& model,
                       comm::Communicator& host);

int64_t count_frozen(const model::CausalLm& model);  ///< elements

}  // namespace fusedbun::train
