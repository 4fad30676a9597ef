#pragma once
// Which parameters of a model are not trained, by patterns of their names.
//
// Thread safety: pure functions.
#include <span>
#include <string>
#include <vector>

namespace fusedbun::train {

/// [name] Whether a pattern matches it. Patterns are a shell's (glob(7): *, ?, [0-3]); * matches dots too. Throws ConfigError for a pattern
/// that matches no name, saying which come near, and if nothing would be left to train.
std::vector<bool> match_frozen(std::span<const std::string> patterns,
                               std::span<const std::string> names);

}  // namespace fusedbun::train
