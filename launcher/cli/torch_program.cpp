#include "fusedbun/launcher/cli/torch_program.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::launcher {
namespace {

constexpr std::array kTorchCommands = {kTrain, kGenerate, kEval, kBench, kEnv};
constexpr std::string_view kSuffix = "-torch";

std::string own_path() {
  return std::filesystem::read_symlink("/proc/self/exe").string();
}

}  // namespace

CLI::App* add_torch_command(CLI::App& app, const TorchCommand& command) {
  return app.add_subcommand(command.name, command.purpose);
}

void become_torch_program(int argc, char* const* argv) {
  const auto is_first = [&](const TorchCommand& command) {
    return argc > 1 && std::string_view(argv[1]) == command.name;
  };
  if (std::ranges::none_of(kTorchCommands, is_first)) return;
  const std::string program = own_path().append(kSuffix);
  ::execv(program.c_str(), argv);
  throw UsageError(std::string("cannot run '") + argv[1] + "': " + program + ": " +
                   std::strerror(errno) + "; it is built and installed beside fusedbun");
}

std::filesystem::path fusedbun_program() {
  std::string path = own_path();
  if (path.ends_with(kSuffix)) path.resize(path.size() - kSuffix.size());
  return path;
}

}  // namespace fusedbun::launcher
