#pragma once
// DeviceError from what LibTorch throws where a GPU fails: its own types carry neither a rank nor an exit code, and their texts are a
// page long.
//
// Thread safety: a function without state.
#include <exception>
#include <optional>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun {

/// The sentence for an error of a GPU (c10::OutOfMemoryError: what was asked for, what is free, what to do; c10::AcceleratorError: what
/// CUDA said); nothing for any other error. `where`: "rank 1 at cuda:1 (GPU-6f1c...) on node3".
std::optional<DeviceError> device_error_behind(const std::exception& error,
                                               const std::string& where);

}  // namespace fusedbun
