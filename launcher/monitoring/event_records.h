#pragma once
// Records of a TensorBoard event file: TFRecord frames (length, masked CRC-32C, bytes, masked CRC-32C) of tensorflow.Event messages. What
// is written is what its readers know since 2.0 (tensorboard/compat/proto/{event,summary,tensor}.proto); a test reads it with TensorBoard.
//
// Thread safety: pure.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fusedbun::monitoring {

/// CRC-32C (Castagnoli).
uint32_t crc32c(std::string_view bytes);

struct EventTime {
  double unix_time = 0;
  int64_t step = 0;
};
struct Scalar {
  std::string tag;
  double value = 0;  ///< kept as float32
};
using HyperParameter = std::pair<std::string, std::variant<double, std::string>>;

/// The first record of a file.
std::string version_record(double unix_time);
/// A process begins at `at.step`: readers drop what earlier files say of this step and of later ones.
std::string start_record(const EventTime& at);
std::string scalars_record(const EventTime& at, const std::vector<Scalar>& scalars);
/// Markdown, for the text tab.
std::string text_record(const EventTime& at, std::string_view tag, std::string_view text);
/// For the hparams tab.
std::string hyper_parameters_record(const EventTime& at,
                                    const std::vector<HyperParameter>& parameters);

}  // namespace fusedbun::monitoring
