#include "fusedbun/dist/plan/parameter_spec.h"

#include "fusedbun/core/error.h"

namespace fusedbun::plan {

std::string_view name_of(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return "f32";
    case ElementType::f64:
      return "f64";
    case ElementType::bf16:
      return "bf16";
    case ElementType::f16:
      return "f16";
  }
  FUSEDBUN_ASSERT(false, "an element type outside its enum");
  return {};
}

int64_t arithmetic_bytes_of(ElementType type) {
  return type == ElementType::f64 ? 8 : 4;
}

int64_t ParameterSpec::stacked_matrices() const {
  const RowRange range = all_rows();
  return range.matrix_rows > 0 ? range.matrices() : 0;
}

}  // namespace fusedbun::plan
