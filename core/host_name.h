#pragma once
// The name of this host, for sentences and addresses.
//
// Thread safety: a function without state.
#include <string>

namespace fusedbun {

/// As gethostname(2) gives it; "?" if it gives none.
std::string host_name();

}  // namespace fusedbun
