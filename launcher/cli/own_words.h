#pragma once
// The words that this process was started with.
//
// Thread safety: functions without state.
#include <string>
#include <vector>

namespace fusedbun::launcher {

/// The program's name included.
std::vector<std::string> own_words();
/// As a shell takes them.
std::string quoted(const std::string& word);
std::string quoted(const std::vector<std::string>& words);

}  // namespace fusedbun::launcher
