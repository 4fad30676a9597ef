#pragma once
// Connections to many ranks, and pipes from them, need more file descriptors than the soft limit of most systems (1024).
//
// Thread safety: any thread; the limit is the process's, and what it starts inherits it.
#include <cstdint>
#include <string>

namespace fusedbun {

/// Raises the soft limit to the hard one, at most 65,536: for programs, which know that nothing in them uses select().
void raise_descriptor_limit();

/// Raises the soft limit so far that `needed` more descriptors can be opened. Throws ConfigError if the hard limit is too low:
/// "<actor> needs N file descriptors for <purpose>, ...".
void require_descriptors(const std::string& actor, int64_t needed, const std::string& purpose);

}  // namespace fusedbun
