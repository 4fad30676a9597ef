#include "fusedbun/launcher/bench/bench_model.h"

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::bench {
namespace {

const std::vector<BenchModel> kModels = {
    {"3m",
     {.n_layer = 4, .n_head = 4, .n_embd = 256, .n_ctx = 128, .vocab = 256},
     /*sequences=*/4},
    {"25m",
     {.n_layer = 8, .n_head = 8, .n_embd = 512, .n_ctx = 128, .vocab = 256},
     /*sequences=*/2},
    {"124m",
     {.n_layer = 12, .n_head = 12, .n_embd = 768, .n_ctx = 1024, .vocab = 50257},
     /*sequences=*/1},
};

}  // namespace

const std::vector<std::string>& model_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const BenchModel& model : kModels) all.push_back(model.name);
    return all;
  }();
  return names;
}

BenchModel model_of(const std::string& name) {
  const auto found = std::ranges::find(kModels, name, &BenchModel::name);
  FUSEDBUN_REQUIRE(found != kModels.end(), ConfigError,
                   "--model = " + name + ": there are 3m, 25m and 124m");
  return *found;
}

std::vector<std::vector<int64_t>> shapes_of(const BenchModel& model) {
  const int64_t width = model.config.n_embd;
  std::vector<std::vector<int64_t>> shapes = {{model.config.vocab, width},
                                              {model.config.n_ctx, width}};
  for (int64_t layer = 0; layer < model.config.n_layer; ++layer) {
    shapes.insert(shapes.end(), {{width},
                                 {width},
                                 {3 * width, width},
                                 {3 * width},
                                 {width, width},
                                 {width},
                                 {width},
                                 {width},
                                 {4 * width, width},
                                 {4 * width},
                                 {width, 4 * width},
                                 {width}});
  }
  shapes.insert(shapes.end(), {{width}, {width}});
  return shapes;
}

}  // namespace fusedbun::bench
