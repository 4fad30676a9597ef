#pragma once
// LastWords: where a run is and what would be lost if it ended now. A launcher that wants to say so of a run that was killed with all its
// ranks names a file in $FUSEDBUN_LAST_WORDS (launcher/launch/last_words.h has the format), which is kept up to date; elsewhere nothing
// is written.
//
// Thread safety: any thread.
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

namespace fusedbun::train {

/// "52 of 252 steps are lost, those after the checkpoint of step 200". `done` counts steps, `durable` is the newest checkpoint's.
std::string what_is_lost(int64_t done, std::optional<int64_t> durable);

class LastWords {
 public:
  /// `more_words`: what the same command needs to go on; may be empty.
  explicit LastWords(std::string more_words);
  ~LastWords();
  LastWords(const LastWords&) = delete;  // owns a descriptor
  LastWords& operator=(const LastWords&) = delete;

  /// Opens the launcher's file; only one rank may.
  void keep_for_launcher();
  /// Whether a launcher will say them.
  static bool are_wanted();

  /// Each costs a write to memory at most.
  void steps_done(int64_t count);
  void checkpoint_durable(int64_t step);

  /// "in job step 252: 52 of 252 steps are lost, ..."; empty before steps_done() was called.
  std::string sentence() const;
  bool has_checkpoint() const;
  /// "the same command with --run-dir runs/a"
  std::string same_command() const;

 private:
  void write() const;  ///< mutex_ is held
  std::string sentence_now() const;

  std::string more_words_;
  int descriptor_ = -1;
  mutable std::mutex mutex_;
  std::optional<int64_t> done_;
  std::optional<int64_t> durable_;
};

}  // namespace fusedbun::train
