#pragma once
// A program of ours from its words to its exit code.
//
// Thread safety: none; main calls it.
#include <CLI/App.hpp>
#include <functional>

namespace fusedbun::launcher {

/// Opens the standard streams, installs the abort handler, adds the commands and calls the one asked for. Every way to fail becomes one
/// line on standard error and an exit code, which is returned.
int run_program(int argc, const char* const* argv,
                const std::function<void(CLI::App&)>& add_commands);

}  // namespace fusedbun::launcher
