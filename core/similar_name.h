#pragma once
// The known name nearest to a mistyped one: of a flag, a preset, a field of a file.
//
// Thread safety: pure functions.
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun {

/// Levenshtein's distance: how many letters must be added, removed or replaced.
size_t edits_between(std::string_view a, std::string_view b);

/// The candidate with the fewest edits to `word`, if they are few (a third of its letters, or two); else empty.
std::string similar_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace fusedbun
