#include "fusedbun/launcher/env/versions.h"

namespace fusedbun::launcher {

std::string_view commit_of_build();  // written by each build: deploy/cmake/FusedbunCommit.cmake

namespace {

std::string or_left_out(std::string_view version) {
  return version.empty() ? "not built in" : std::string(version);
}

}  // namespace

std::vector<std::pair<std::string_view, std::string>> versions() {
  const std::string_view hash = commit_of_build();
  std::string own = FUSEDBUN_VERSION;
  if (!hash.empty()) own.append(" (git ").append(hash).append(")");
  return {{"fusedbun", own},
          {"torch", or_left_out(FUSEDBUN_TORCH_VERSION_FULL)},
          {"grpc", or_left_out(FUSEDBUN_GRPC_VERSION)},
          {"mpi", or_left_out(FUSEDBUN_MPI_VERSION)},
          {"nccl", or_left_out(FUSEDBUN_NCCL_VERSION)},
          {"cuda", or_left_out(FUSEDBUN_CUDA_VERSION)}};
}

std::string program_text() {
  const auto [name, version] = versions().front();
  return std::string(name) + " " + version;
}

std::string versions_text() {
  std::string text;
  for (const auto& [name, version] : versions()) {
    if (!text.empty()) text += '\n';
    text.append(name).append(" ").append(version);
  }
  return text;
}

}  // namespace fusedbun::launcher
