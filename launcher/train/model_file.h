#pragma once
// ModelFile: the file that a run is for. A disk that is full, or gone for a while, never costs the model: what can be known
// at the start is refused at the start, and at the end saving is tried until it works or somebody says to leave without it.
//
// Thread safety: none; rank 0's training thread.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace fusedbun::train {

/// A file descriptor that nothing uses until it is given back: others, as a flood of connections, may have taken all the rest.
class SpareDescriptor {
 public:
  SpareDescriptor() { keep(); }
  ~SpareDescriptor() { give_back(); }
  SpareDescriptor(const SpareDescriptor&) = delete;  // owns the descriptor
  void keep();
  void give_back();

 private:
  int descriptor_ = -1;
};

class ModelFile {
 public:
  /// Throws IoError if `path` cannot be written, or `bytes` do not fit there. Whoever makes `elsewhere` a link while the run goes
  /// on gives the model another place, where nothing is yet; one that is there already is of an earlier run, and removed.
  ModelFile(std::filesystem::path path, int64_t bytes, std::filesystem::path elsewhere);

  struct Patience {
    std::function<void(const std::string& sentence)> notice;  ///< after the first failure
    std::function<bool()> gives_up;                           ///< asked while it waits
    std::chrono::milliseconds between_tries{5000};
  };
  /// Calls `write` with a path until it does not throw IoError, and returns that path: where the link `elsewhere` points, or the
  /// one given, or, if another job has saved its model there meanwhile, a name beside it. Nothing if patience gives up: the model is not saved.
  std::optional<std::filesystem::path> save(
      const std::function<void(const std::filesystem::path&)>& write,
      const Patience& patience) const;

 private:
  /// Tells one content of a file from the next.
  struct Version {
    uint64_t device = 0, inode = 0;
    int64_t modified_ns = 0;
    bool operator==(const Version&) const = default;
  };
  static std::optional<Version> version_of(const std::filesystem::path& path);
  bool has_other_place() const;
  std::filesystem::path target() const;
  bool wait_in_vain(const std::filesystem::path& tried, const Patience& patience) const;

  std::filesystem::path path_, elsewhere_;
  mutable SpareDescriptor spare_;  // for save(), which has one file open at a time
  std::optional<Version> at_start_;
};

}  // namespace fusedbun::train
