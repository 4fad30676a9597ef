#pragma once
// ModelFile: the weights that a run is for. A disk that is full, or gone for a while, never costs the model: what can be known
// at the start is refused at the start, and at the end saving is tried until it works or somebody says to leave without it.
//
// Thread safety: none; rank 0's training thread.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "fusedbun/dist/checkpoint/model_place.h"
#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::train {

using checkpoint::ModelPlace;

class ModelFile {
 public:
  /// Makes a place's folder. Throws IoError if `place` cannot be written, or `bytes` do not fit there. `elsewhere` is a link that a person
  /// makes while the run goes on: the model is saved where it points. One that is there at the start is of an earlier run, and removed.
  ModelFile(ModelPlace place, int64_t bytes, std::filesystem::path elsewhere);

  struct Patience {
    std::function<void(const std::string& sentence)> notice;  ///< after the first failure
    std::function<bool()> gives_up;                           ///< asked while it waits
    std::chrono::milliseconds between_tries{5000};
  };
  /// Calls `write` with a path for the weights until it does not throw IoError, and returns that place: where `elsewhere` points, if
  /// nothing is there; else the one given, or, if another job has saved its model there meanwhile, a name beside it. Returns nothing if
  /// patience gives up: the model is not saved.
  std::optional<ModelPlace> save(const std::function<void(const std::filesystem::path&)>& write,
                                 const Patience& patience);

 private:
  /// Tells one content of a file from the next.
  struct Version {
    uint64_t device = 0, inode = 0;
    int64_t modified_ns = 0;
    bool operator==(const Version&) const = default;
  };
  static std::optional<Version> version_of(const std::filesystem::path& path);
  std::optional<ModelPlace> other_place() const;
  ModelPlace own_place() const;
  bool wait_in_vain(const std::optional<ModelPlace>& tried, const Patience& patience) const;

  ModelPlace place_;
  std::filesystem::path elsewhere_;
  /// Kept open for save(), which has one file open at a time: others, as a flood of connections, may have taken all the rest.
  run_folder::Descriptor spare_;
  std::optional<Version> at_start_;
};

}  // namespace fusedbun::train
