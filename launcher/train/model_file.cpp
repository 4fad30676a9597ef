#include "fusedbun/launcher/train/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

run_folder::Descriptor spare() {
  return run_folder::Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void require_unused(const fs::path& path) {
  std::error_code error;
  FUSEDBUN_REQUIRE(!fs::exists(fs::symlink_status(path, error)), IoError,
                   path.string() + " is there already");
}

}  // namespace

ModelFile::ModelFile(fs::path path, int64_t bytes, fs::path elsewhere)
    : path_(std::move(path)),
      elsewhere_(std::move(elsewhere)),
      spare_(spare()),
      at_start_(version_of(path_)) {
  std::error_code error;
  if (other_place()) fs::remove(elsewhere_, error);
  run_folder::require_writable(path_);
  run_folder::require_space(path_, bytes);
}

std::optional<fs::path> ModelFile::save(const std::function<void(const fs::path&)>& write,
                                        const Patience& patience) {
  for (fs::path told;;) {
    const std::optional<fs::path> other = other_place();
    const fs::path path = other ? *other : own_place();
    try {
      if (other) require_unused(path);
      spare_.close();
      write(path);
      return path;
    } catch (const IoError& error) {
      if (!spare_.is_open()) spare_ = spare();
      if (std::exchange(told, path) != path) {
        patience.notice(std::string(error.what()) +
                        "; the model is kept in memory and saving is tried again every " +
                        std::to_string(patience.between_tries.count() / 1000) +
                        " s: make room, name another place with 'fusedbun save-to', or leave "
                        "without it by 'fusedbun stop' or one more signal");
      }
      if (wait_in_vain(other, patience)) {
        patience.notice(std::string(error.what()) + "; left without saving the model, as told");
        return std::nullopt;
      }
    }
  }
}

// Returns early if there is another place, and, with true, if patience has come to its end.
bool ModelFile::wait_in_vain(const std::optional<fs::path>& tried, const Patience& patience) const {
  const auto end = Clock::now() + patience.between_tries;
  while (Clock::now() < end && other_place() == tried) {
    if (patience.gives_up()) return true;
    std::this_thread::sleep_for(std::min<Clock::duration>(100ms, end - Clock::now()));
  }
  return false;
}

std::optional<ModelFile::Version> ModelFile::version_of(const fs::path& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return {};
  return Version{found.st_dev, found.st_ino,
                 found.st_mtim.tv_sec * 1'000'000'000 + found.st_mtim.tv_nsec};
}

std::optional<fs::path> ModelFile::other_place() const {
  std::error_code error;
  const fs::path named = fs::read_symlink(elsewhere_, error);
  if (error) return std::nullopt;
  return elsewhere_.parent_path() / named;
}

fs::path ModelFile::own_place() const {
  const std::optional<Version> now = version_of(path_);
  if (!now || now == at_start_) return path_;
  fs::path beside = path_.parent_path() / path_.stem();
  beside += "-" + std::to_string(::getpid());
  beside += path_.extension();
  return beside;
}

}  // namespace fusedbun::train
