#pragma once
// What Slurm's variables say about where the ranks of a job step meet. Pure functions.
//
// Thread safety: functions without state.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::plan {

/// The hosts of a node list as Slurm shortens it, in its order: "node[3-5,07],gpu1" is node3, node4, node5, node07, gpu1; "r[1-2]n[1-2]" has
/// four. Throws ConfigError, which begins with `name`, for what is no such list.
std::vector<std::string> expand_node_list(std::string_view name, std::string_view text);

/// A port that every rank of this step finds by itself: from kSlurmPortMin on, below those that the kernel gives to outgoing
/// connections, and another one for other steps and for the next 197 jobs.
inline constexpr int kSlurmPortMin = 10'000;
inline constexpr int kSlurmPorts = 20'000;
int slurm_port(uint64_t job, uint64_t step);

}  // namespace fusedbun::plan
