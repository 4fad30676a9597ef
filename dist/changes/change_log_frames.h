#pragma once
// Frames of changes.log: one record is one line, readable by people and proof against torn writes.
//
//   LLLLLLLL DDDDDDDDDDDD HHHHHHHHHHHHHHHH {"record":...}\n
//
// L: bytes of the JSON text; D: bytes of the file known to be on disk when the frame was written, which is the offset of the
// first frame written together with it; H: XXH3-64 of "L D {...}". All hexadecimal with leading zeros.
//
// Frames that are written together reach the disk together or not at all as far as a reader is concerned: after a crash any
// part of the last ones may be missing. D tells that from damage: what lies before some later frame's D was on disk once.
//
// Thread safety: functions without state.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::changes {

/// `json` is one line. Adds the newline.
std::string frame(std::string_view json, uint64_t durable_bytes);

struct LogText {
  std::vector<std::string> records;  ///< JSON texts, in order
  uint64_t valid_bytes = 0;          ///< what follows was never completely written: to be cut off
};
/// Throws DataError (65) naming the offset where the file was damaged after it had been on disk, or if it is no such file.
LogText read_frames(std::string_view bytes);

}  // namespace fusedbun::changes
