#pragma once
// What this binary was built from: its own version, and those of the libraries it was compiled against.
//
// Thread safety: any thread.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fusedbun::launcher {

/// Name and version, our own first ("0.1.0 (git 1a2b3c4)"); "not built in" for a part that was left out.
std::vector<std::pair<std::string_view, std::string>> versions();

/// "fusedbun 0.1.0 (git 1a2b3c4)"
std::string program_text();

/// One "name version" per line, without a last newline.
std::string versions_text();

}  // namespace fusedbun::launcher
