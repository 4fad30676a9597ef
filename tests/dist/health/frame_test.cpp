#include "fusedbun/dist/health/frame.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

std::vector<Frame> one_of_each() {
  return {
      Hello{.token = {1, 2, 3},
            .card = {.rank = 3, .local_rank = 1, .pid = 4711, .host = "node3", .device = "cpu"}},
      Beat{{41, plan::Phase::update, 2}, 0x0123456789ABCDEF, 1 << 20},
      plan::LostRank{.rank = 2,
                     .host = "node2",
                     .pid = 4712,
                     .last = {41, plan::Phase::all_gather, 0},
                     .cause = plan::LostRank::Cause::failed,
                     .silence_us = 17,
                     .code = 74,
                     .reason = "the disk is full"},
      Bye{}};
}

TEST(Frame, ComesBackFromItsBytes) {
  std::string bytes;
  for (const Frame& frame : one_of_each()) bytes += encode(frame);
  for (const Frame& frame : one_of_each()) EXPECT_EQ(take_frame(bytes), frame);
  EXPECT_EQ(bytes, "");
}

TEST(Frame, IsTakenOnlyWhole) {
  for (const Frame& frame : one_of_each()) {
    const std::string whole = encode(frame);
    for (size_t part = 0; part < whole.size(); ++part) {
      std::string bytes = whole.substr(0, part);
      EXPECT_EQ(take_frame(bytes), std::nullopt);
      EXPECT_EQ(bytes.size(), part);
    }
  }
}

TEST(Frame, ALongTextIsCut) {
  std::string bytes =
      encode(plan::LostRank{.host = std::string(100, 'h'), .reason = std::string(9999, 'r')});
  const auto lost = std::get<plan::LostRank>(*take_frame(bytes));
  EXPECT_EQ(lost.host, std::string(63, 'h'));
  EXPECT_EQ(lost.reason, std::string(511, 'r'));
}

TEST(Frame, WhatCannotBeIsRefused) {
  const std::string beat = encode(Beat{});
  const auto refuses = [](std::string bytes) { EXPECT_THROW(take_frame(bytes), DataError); };
  const auto with = [&](size_t at, char byte) {
    std::string bytes = beat;
    bytes[at] = byte;
    return bytes;
  };
  refuses(with(0, 23));  // shorter than a beat
  refuses(with(2, 1));   // longer than any body
  refuses(with(4, 9));   // no such kind
  refuses(with(6, 2));   // another version
  refuses("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

TEST(Frame, RandomBytesAreRefusedOrAwaitedNeverBelieved) {
  const char* given = std::getenv("FUSEDBUN_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "FUSEDBUN_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes;
    for (const Frame& frame : one_of_each()) bytes += encode(frame);
    for (int flips = 0; flips < 8; ++flips)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      while (take_frame(bytes)) continue;
      EXPECT_LE(bytes.size(), kBodyBytesMax + 8);
    } catch (const DataError&) {
      continue;
    }
  }
}

}  // namespace
}  // namespace fusedbun::health
