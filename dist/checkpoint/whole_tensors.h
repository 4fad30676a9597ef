#pragma once
// The tensors of a checkpoint, put together from the parts that its files hold. No file is touched.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fusedbun/dist/checkpoint/manifest.h"

namespace fusedbun::checkpoint {

/// A whole tensor of a checkpoint, put together from its parts.
struct WholeTensor {
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  struct Part {
    int file = 0;       ///< index into Manifest::files
    int64_t begin = 0;  ///< first byte in the file
    const StoredPart* stored = nullptr;
  };
  std::vector<Part> parts;
};
using WholeTensors = std::map<std::string, WholeTensor, std::less<>>;

/// [folder][name], all three folders always. `stored` points into the manifest, which must be one that parse_manifest has
/// accepted. Throws DataError that names the tensor: parts that differ in type or dimensions, that do not cover it exactly
/// (a gap, an overlap), or that hold nothing beside others; values that are not as many as the parameter's elements.
std::map<std::string, WholeTensors, std::less<>> put_together(const Manifest& manifest);

}  // namespace fusedbun::checkpoint
