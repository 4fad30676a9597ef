#include "fusedbun/launcher/train/precision.h"

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr Precision kAll[] = {Precision::float32, Precision::bf16, Precision::bf16_autocast,
                              Precision::fp16_autocast};

}  // namespace

std::string_view name_of(Precision precision) {
  switch (precision) {
    case Precision::float32:
      return "float32";
    case Precision::bf16:
      return "bf16";
    case Precision::bf16_autocast:
      return "bf16-autocast";
    case Precision::fp16_autocast:
      return "fp16-autocast";
  }
  FUSEDBUN_ASSERT(false, "every precision has a name");
}

Precision parse_precision(const std::string& name) {
  std::string names;
  for (const Precision precision : kAll) {
    if (name == name_of(precision)) return precision;
    names += (names.empty() ? "" : ", ") + std::string(name_of(precision));
  }
  throw ConfigError("--precision = '" + name + "': must be one of " + names);
}

}  // namespace fusedbun::train
