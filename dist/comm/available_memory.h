#pragma once
// How much memory this process may still use: what the host has, or what its control groups (containers, batch systems)
// leave.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <optional>

namespace fusedbun::comm {

/// Bytes; nothing if the kernel does not say. Reads proc/meminfo, proc/self/cgroup and sys/fs/cgroup (version 1 and 2,
/// the group itself and those above it) under `root`. Cached file pages that can be dropped count as free.
std::optional<int64_t> available_memory(const std::filesystem::path& root = "/");

}  // namespace fusedbun::comm
