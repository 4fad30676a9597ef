#include "fusedbun/launcher/bench/bench_model.h"

#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::bench {
namespace {

int64_t count_of(const std::vector<std::vector<int64_t>>& shapes) {
  int64_t count = 0;
  for (const auto& shape : shapes) {
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    count += elements;
  }
  return count;
}

TEST(BenchModel, ShapesAreThoseOfTheModel) {
  const BenchModel model = model_of("3m");
  model::Gpt2 gpt2(model.config, 1);
  std::vector<std::vector<int64_t>> shapes;
  for (const auto& parameter : gpt2->parameters()) shapes.push_back(parameter.sizes().vec());
  EXPECT_EQ(shapes, shapes_of(model));
}

TEST(BenchModel, SizesAreWhatTheNamesSay) {
  EXPECT_NEAR(static_cast<double>(count_of(shapes_of(model_of("3m")))), 3.2e6, 0.1e6);
  EXPECT_NEAR(static_cast<double>(count_of(shapes_of(model_of("25m")))), 25.4e6, 0.2e6);
  EXPECT_EQ(count_of(shapes_of(model_of("124m"))), 124'439'808);  // GPT-2 small
  EXPECT_THROW(model_of("7b"), ConfigError);
}

}  // namespace
}  // namespace fusedbun::bench
