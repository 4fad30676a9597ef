#pragma once
// `fusedbun bench step|collectives|exchange|train|all`.
//
// Thread safety: none; set up once by main.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

CLI::App* add_bench_command(CLI::App& app);

}  // namespace fusedbun::launcher
