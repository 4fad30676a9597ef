#include <gtest/gtest.h>

#include <string>

#include "fusedbun/launcher/env/host.h"

namespace fusedbun::launcher {
namespace {

// Two processors of each kind, cut short.
const std::string kMilan =
    "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx2 sha_ni vaes\nbugs\t\t: "
    "bf16\n\n"
    "processor\t: 1\nflags\t\t: fpu avx2 sha_ni vaes\n";
const std::string kGenoa =
    "processor\t: 0\nmodel name\t: AMD EPYC 9654\nflags\t\t: fpu avx2 avx512f avx512_bf16 vaes\n";
const std::string kSapphireRapids =
    "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\nvmx flags\t: vnmi\n";
const std::string kGraviton3 =
    "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve bf16 i8mm\n";
const std::string kGraviton2 = "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp\n";

TEST(Processor, SaysWhetherItHasProductsOfBFloat16) {
  EXPECT_EQ(bfloat16_products_in(kMilan), false);
  EXPECT_EQ(bfloat16_products_in(kGenoa), true);
  EXPECT_EQ(bfloat16_products_in(kSapphireRapids), true);
  EXPECT_EQ(bfloat16_products_in(kGraviton3), true);
  EXPECT_EQ(bfloat16_products_in(kGraviton2), false);
  EXPECT_EQ(bfloat16_products_in("processor : 0\ncpu : POWER9\n"), std::nullopt);
  EXPECT_EQ(bfloat16_products_in(""), std::nullopt);
  // A longer word is another flag.
  EXPECT_EQ(bfloat16_products_in("Features : svebf16\n"), false);
}

}  // namespace
}  // namespace fusedbun::launcher
