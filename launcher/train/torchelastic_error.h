#pragma once
// The file in which torchrun's agent, and `fusedbun launch --log-dir`, look for a failed rank's reason ($TORCHELASTIC_ERROR_FILE):
//   {"message":{"message":"...","extraInfo":{"py_callstack":"","timestamp":"1764115200"}}}
//
// Thread safety: a function without state.
#include <string>

namespace fusedbun::train {

/// Does nothing without the variable. Never throws: there is a greater trouble to tell of.
void write_torchelastic_error(const std::string& sentence) noexcept;

}  // namespace fusedbun::train
