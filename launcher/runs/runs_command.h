#pragma once
// `fusedbun runs`: the live and the finished runs of a folder tree.
//
// Thread safety: none; used while the command line is set up.
namespace CLI {
class App;
}

namespace fusedbun::launcher {

CLI::App* add_runs_command(CLI::App& app);

}  // namespace fusedbun::launcher
