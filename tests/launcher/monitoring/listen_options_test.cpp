#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/monitoring/metrics_endpoint.h"

namespace fusedbun::monitoring {
namespace {

TEST(ListenOptions, AreWrittenAsHttpServersReadThem) {
  EXPECT_EQ(text_of({.port = 9400}), "127.0.0.1:9400");
  EXPECT_EQ(text_of({.address = "localhost", .port = 1}), "127.0.0.1:1");
  EXPECT_EQ(text_of({.address = "0.0.0.0", .port = 65535}), "0.0.0.0:65535");
  EXPECT_EQ(text_of({.address = "::1", .port = 9400}), "[::1]:9400");
  EXPECT_EQ(text_of({.address = "[::]", .port = 9400}), "[::]:9400");
}

TEST(ListenOptions, WhatIsNoAddressIsRefused) {
  for (const char* const address :
       {"node0", "127.0.0.1:9400", "1.2.3", "", "[]", "[node0]", "300.0.0.1"}) {
    try {
      text_of({.address = address, .port = 9400});
      FAIL() << address;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(),
                  ::testing::StartsWith("--metrics-address = '" + std::string(address) + "'"));
    }
  }
}

}  // namespace
}  // namespace fusedbun::monitoring
