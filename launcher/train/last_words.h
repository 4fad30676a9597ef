#pragma once
// LastWords: what a run wants said if it is killed with all its ranks. A launcher that will say it names a file in
// $FUSEDBUN_LAST_WORDS (launcher/launch/last_words.h has the format); elsewhere nothing is kept.
//
// Thread safety: one thread at a time.
#include <cstdint>
#include <optional>
#include <string>

namespace fusedbun::train {

/// "52 of 252 steps are lost, those after the checkpoint of step 200". `done` counts steps, `durable` is the newest checkpoint's.
std::string what_is_lost(int64_t done, std::optional<int64_t> durable);

class LastWords {
 public:
  LastWords();
  ~LastWords();
  LastWords(const LastWords&) = delete;  // owns a descriptor
  LastWords& operator=(const LastWords&) = delete;

  /// Whether somebody will say them.
  bool are_kept() const { return descriptor_ >= 0; }
  /// Replaces what was kept. `more_words`: what the same command needs to go on. Costs a write to memory.
  void keep(const std::string& lost, const std::string& more_words);

 private:
  int descriptor_ = -1;
};

}  // namespace fusedbun::train
