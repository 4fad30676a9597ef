#pragma once
// In which number formats a model is held and computed: --precision. The names follow torch.amp.
//
//   name           parameters   forward's matrix products   loss scale   beside it
//   float32        float32      float32                     -
//   bf16           bfloat16     bfloat16                    -            the optimizer keeps float32 masters, or what --low-precision says
//   bf16-autocast  float32      bfloat16                    -            torch.autocast(dtype=torch.bfloat16)
//   fp16-autocast  float32      float16                     dynamic      torch.autocast(dtype=torch.float16) with torch.amp.GradScaler
//
// The loss is always computed in float32. Under autocast LibTorch decides by operation: linear layers and attention take the shorter
// type, layer norms and the loss float32.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <string>
#include <string_view>

namespace fusedbun::train {

enum class Precision : uint8_t { float32, bf16, bf16_autocast, fp16_autocast };

/// "bf16-autocast".
std::string_view name_of(Precision precision);
/// Throws ConfigError that lists the names.
Precision parse_precision(const std::string& name);

/// float16 ends at 65,504 and loses what is below 6e-8: the loss is multiplied by a scale (core/loss_scale.h).
constexpr bool scales_loss(Precision precision) {
  return precision == Precision::fp16_autocast;
}
constexpr bool has_autocast(Precision precision) {
  return precision == Precision::bf16_autocast || precision == Precision::fp16_autocast;
}
/// Bytes of a parameter, and of its gradient.
constexpr int64_t parameter_bytes(Precision precision) {
  return precision == Precision::bf16 ? 2 : 4;
}

}  // namespace fusedbun::train
