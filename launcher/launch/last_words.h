#pragma once
// What a program wants said if it cannot say it itself: killed at once with all its ranks it leaves no word. So while it runs it
// keeps its last words in the file $FUSEDBUN_LAST_WORDS, newest over older, and the launcher says them when the job has failed:
//
//   in job step 252: 52 of 252 steps are lost, those after the checkpoint of step 200\n    what was lost
//   --run-dir runs/20261127-105017-4711\n                           words that the same command needs to go on; may be empty
//   \0\0\0...                                                                              up to kLastWordsBytes, in one write()
//
// Thread safety: one thread at a time.
#include <cstddef>
#include <string>
#include <string_view>

namespace fusedbun::launch {

inline constexpr const char* kLastWordsVariable = "FUSEDBUN_LAST_WORDS";
inline constexpr size_t kLastWordsBytes = 1024;
/// Of the file in memory; where its link leads elsewhere the variable is not of this launcher.
inline constexpr const char* kLastWordsFileName = "fusedbun-last-words";

struct LastWords {
  std::string lost = {};        ///< empty: the program has said nothing
  std::string more_words = {};  ///< to be put after the command, to go on

  bool operator==(const LastWords&) const = default;
};
LastWords parse_last_words(std::string_view text);

/// The file, in memory: it goes with the launcher, however that ends. Where the kernel gives none the path is empty.
class LastWordsFile {
 public:
  LastWordsFile();
  ~LastWordsFile();
  LastWordsFile(const LastWordsFile&) = delete;  // owns a descriptor
  LastWordsFile& operator=(const LastWordsFile&) = delete;

  /// For other processes of this user.
  const std::string& path() const { return path_; }
  LastWords read() const;

 private:
  int descriptor_ = -1;
  std::string path_;
};

}  // namespace fusedbun::launch
