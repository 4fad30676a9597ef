#include "fusedbun/launcher/model/gpt2_config.h"

#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::model {

void validate(const Gpt2Config& config) {
  const auto require_positive = [](const char* name, int64_t value) {
    FUSEDBUN_REQUIRE(value >= 1, ConfigError,
                     std::string(name) + " = " + std::to_string(value) + ": must be at least 1");
  };
  require_positive("layers", config.n_layer);
  require_positive("heads", config.n_head);
  require_positive("width", config.n_embd);
  require_positive("context", config.n_ctx);
  require_positive("vocabulary", config.vocab);
  FUSEDBUN_REQUIRE(config.n_embd % config.n_head == 0, ConfigError,
                   "width = " + std::to_string(config.n_embd) +
                       ": must be a multiple of heads = " + std::to_string(config.n_head));
  FUSEDBUN_REQUIRE(config.initial_deviation >= 0, ConfigError,
                   "the initial deviation must be at least 0");
}

}  // namespace fusedbun::model
