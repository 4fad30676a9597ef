#pragma once
// Connections to many ranks need more file descriptors than the soft limit of most systems (1024).
//
// Thread safety: any thread; the limit is the process's.
#include <string>

namespace fusedbun::comm {

/// Raises the soft limit so far that `needed` more descriptors can be opened. Throws ConfigError, beginning with
/// `actor`, if the hard limit is too low.
void raise_descriptor_limit(const std::string& actor, int needed);

}  // namespace fusedbun::comm
