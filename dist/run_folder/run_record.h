#pragma once
// run.json: what a run was asked for and how it ended, attempt by attempt, for those who come after its processes:
//   {"format":"fusedbun.run","version":1,"attempts":[
//     {"state":"DRAINED","exit_code":75,"reason":"...","steps":120,"total_steps":300,"seed":1,"world_size":2,
//      "run_id":"...","host":"node3","pid":4711,"boot_id":"...","pid_namespace":"pid:[...]","started":"2026-11-22T08:00:00Z","ended":"2026-11-22T08:09:00Z",
//      "model":"runs/a/model.safetensors","model_step":null,"optimizer":"fusedbun recommended, ...","command":["fusedbun",...],"flags":{"--batch":"16",...},
//      "config":{"lr":["0.001"],"data":["a.bin","b.bin"]},
//      "versions":{"fusedbun":"0.1.0",...}}, ...]}
// The last attempt is the newest. While it runs its state is RUNNING and exit_code and ended are null; that they stay so
// without its process means that it was killed.
//
// Thread safety: one thread at a time.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fusedbun/dist/run_folder/process_place.h"

namespace fusedbun::run_folder {

enum class RunState : uint8_t {
  running,
  succeeded,  ///< all steps are done
  drained,    ///< left early on request, to be run again
  stopped,    ///< left early on request, for good
  failed,
};
std::string name_of(RunState state);  ///< "SUCCEEDED"

using NamedTexts = std::vector<std::pair<std::string, std::string>>;  ///< in this order
/// Flags without dashes, each with its values, of which a list has several.
using FlagValues = std::vector<std::pair<std::string, std::vector<std::string>>>;

struct Attempt {
  RunState state = RunState::running;
  std::optional<int> exit_code = std::nullopt;
  std::string reason = {};  ///< one sentence; empty where the state says all
  int64_t steps = 0;        ///< done
  int64_t total_steps = 0;
  uint64_t seed = 0;
  int world_size = 1;
  std::string run_id = {};  ///< of the launcher, or empty
  ProcessPlace place = {};  ///< of rank 0
  std::string started = {};
  std::string ended = {};  ///< empty: it has not
  std::string model = {};  ///< where it is or will be saved; empty: left without it, as told
  /// Steps done at the validation that its weights are of, where the best are kept; nothing: they are the last.
  std::optional<int64_t> model_step = {};
  std::string optimizer = {};  ///< as the run describes it
  std::vector<std::string> command = {};
  NamedTexts flags = {};  ///< with their defaults
  /// What was set, flag by flag, typed or by a file or the environment; nothing in records of versions that did not keep it.
  std::optional<FlagValues> config = {};
  NamedTexts versions = {};

  /// It will not be run again; one that was stopped without its model may be.
  bool finished_for_good() const {
    return state == RunState::succeeded || (state == RunState::stopped && exit_code == 0);
  }
};

/// All attempts, the newest last; none if there is no record. Throws DataError (65) for a file that is none of ours.
std::vector<Attempt> read_run_record(const std::filesystem::path& run_dir);
/// The same of a run.json with another name.
std::vector<Attempt> read_run_record_file(const std::filesystem::path& path);
/// The newest attempt, without the others, as run.json has it.
std::string json_of(const Attempt& attempt);

/// Whether a folder that was used before may be used again.
enum class Reuse : uint8_t {
  refuse_finished,  ///< a run that has ended for good keeps its folder
  overwrite,        ///< an earlier run's files are removed; its model is replaced at the end
};
/// Throws ConfigError (78) if a run has ended for good in `run_dir` and may not be overwritten, DataError (65) if its record
/// cannot be read. Writes nothing.
void require_usable(const std::filesystem::path& run_dir, Reuse reuse);

/// Writes the record of one attempt, by the process that holds the folder's lock. A record that cannot be written is told
/// and costs the run nothing.
class RunRecorder {
 public:
  using Notice = std::function<void(const std::string& sentence)>;

  /// Notes that `attempt` starts; place and time are filled in. Throws what require_usable throws.
  RunRecorder(std::filesystem::path run_dir, Attempt attempt, Reuse reuse, Notice notice);

  /// The attempts before this one.
  const std::vector<Attempt>& earlier() const { return earlier_; }
  /// How it ended; may be called again, the last call counts.
  void end(RunState state, int exit_code, std::string reason);
  void set_steps(int64_t steps) { attempt_.steps = steps; }
  /// `step` as Attempt::model_step.
  void set_model(const std::filesystem::path& model, std::optional<int64_t> step = std::nullopt) {
    attempt_.model = model.string();
    attempt_.model_step = step;
  }

 private:
  void write() noexcept;

  std::filesystem::path run_dir_;
  Notice notice_;
  std::vector<Attempt> earlier_;
  Attempt attempt_;
};

/// The newest attempt has ended so: by the process that holds the folder's lock, when it is ended by force and its RunRecorder's thread may
/// hang. A record that is missing or cannot be written stays as it is.
void end_newest_attempt(const std::filesystem::path& run_dir, RunState state, int exit_code,
                        const std::string& reason, int64_t steps) noexcept;

}  // namespace fusedbun::run_folder
