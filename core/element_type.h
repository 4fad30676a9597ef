#pragma once
// ElementType: the floating point types that parameters and gradients may have.
//
// Thread safety: values.
#include <cstdint>

namespace fusedbun {

enum class ElementType : uint8_t { f32, f64, bf16, f16 };

/// Of one element.
inline int64_t bytes_of(ElementType type) {
  return type == ElementType::f64 ? 8 : type == ElementType::f32 ? 4 : 2;
}

}  // namespace fusedbun
