#pragma once
// Before the first step all ranks must hold the same model and options; if not, every rank says so
// in the same words.
//
// Thread safety: none; collective over `host`.
#include <span>
#include <string>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun {

/// Compares `lines` (one per parameter, then one per group's options) with those of rank 0. Throws
/// ConfigError on every rank, naming the first rank that differs and the first line that does.
/// Collective.
void require_same_on_all_ranks(comm::Communicator& host, std::span<const std::string> lines);

}  // namespace fusedbun
