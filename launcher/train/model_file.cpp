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

ModelFile::ModelFile(ModelPlace place, int64_t bytes, fs::path elsewhere)
    : place_(std::move(place)),
      elsewhere_(std::move(elsewhere)),
      spare_(spare()),
      at_start_(version_of(place_.weights)) {
  std::error_code error;
  if (other_place()) fs::remove(elsewhere_, error);
  checkpoint::make_folder(place_);
  run_folder::require_writable(place_.weights);
  run_folder::require_space(place_.weights, bytes);
}

std::optional<ModelPlace> ModelFile::save(const std::function<void(const fs::path&)>& write,
                                          const Patience& patience) {
  for (fs::path told;;) {
    const std::optional<ModelPlace> other = other_place();
    const ModelPlace place = other ? *other : own_place();
    const fs::path& path = place.weights;
    try {
      if (other) {
        require_unused(path);
        checkpoint::make_folder(place);
      }
      spare_.close();
      write(path);
      return place;
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
bool ModelFile::wait_in_vain(const std::optional<ModelPlace>& tried,
                             const Patience& patience) const {
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

std::optional<ModelPlace> ModelFile::other_place() const {
  std::error_code error;
  const fs::path named = fs::read_symlink(elsewhere_, error);
  if (error) return std::nullopt;
  return checkpoint::place_of(elsewhere_.parent_path() / named);
}

ModelPlace ModelFile::own_place() const {
  const std::optional<Version> now = version_of(place_.weights);
  if (!now || now == at_start_) return place_;
  fs::path beside = place_.weights.parent_path() / place_.weights.stem();
  beside += "-" + std::to_string(::getpid());
  beside += place_.weights.extension();
  return {.weights = beside, .is_folder = place_.is_folder};
}

}  // namespace fusedbun::train
