#include "fusedbun/dist/health/frame.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

std::vector<Frame> one_of_each() {
  return {
      Challenge{.nonce = {7, 8, 9}},
      Hello{.info = {.rank = 3, .local_rank = 1, .pid = 4711, .host = "node3", .device = "cpu"},
            .nonce = {4, 5, 6},
            .proof = {1, 2, 3}},
      Welcome{.proof = {0xFF, 0xFE}},
      Beat{
          {41, plan::Phase::update, 2},
          0x0123456789ABCDEF,
          1 << 20,
          {.phase_us = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, .sent_bytes = 0, .resident_bytes = 11}},
      Beat{.usage = {.sent_bytes = {}, .resident_bytes = 12}},
      plan::LostRank{.rank = 2,
                     .host = "node2",
                     .pid = 4712,
                     .last = {41, plan::Phase::all_gather, 0},
                     .cause = plan::LostRank::Cause::failed,
                     .silence_us = 17,
                     .code = 74,
                     .reason = "the disk is full"},
      Bye{},
      Order{.kind = Order::Kind::dump, .number = 3, .text = "/runs/a/diagnostics/now"},
      Order{.kind = Order::Kind::exit, .code = 75, .text = "drained"},
      OrderAnswer{.number = 3, .problem = "no space left on device"}};
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
  refuses(with(6, 1));   // another version
  refuses("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

/// What the comment of frame.h says of the bytes, told without it.
enum class Verdict { whole, awaited, refused };
Verdict judge(const std::string& bytes) {
  constexpr size_t kBodyBytes[] = {16, 144, 32, 128, 616, 8, 920, 520};  // by kind
  constexpr uint16_t kLost = 4, kOrder = 6;
  constexpr size_t kCauseAt = 8 + 32;
  if (bytes.size() < 8) return Verdict::awaited;
  uint32_t length = 0;
  uint16_t kind = 0;
  uint16_t version = 0;
  std::memcpy(&length, &bytes[0], 4);
  std::memcpy(&kind, &bytes[4], 2);
  std::memcpy(&version, &bytes[6], 2);
  if (version != 4 || length > 1024) return Verdict::refused;
  if (bytes.size() < 8 + length) return Verdict::awaited;
  if (kind >= std::size(kBodyBytes) || length != kBodyBytes[kind]) return Verdict::refused;
  uint64_t order = 0;
  if (kind == kOrder) std::memcpy(&order, &bytes[8], 8);
  if (order > 1) return Verdict::refused;
  uint64_t cause = 0;
  if (kind == kLost) std::memcpy(&cause, &bytes[kCauseAt], 8);
  return cause <= 3 ? Verdict::whole : Verdict::refused;
}

TEST(Frame, RandomBytesAreRefusedOrAwaitedNeverBelieved) {
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "FUSEDBUN_TEST_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  std::string all;
  std::vector<size_t> headers;
  for (const Frame& frame : one_of_each()) {
    headers.push_back(all.size());
    all += encode(frame);
  }
  int seen[3] = {};
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = all;
    for (int flips = 0; flips < 4; ++flips)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    // Where most of what is checked stands.
    bytes[headers[random() % headers.size()] + random() % 8] ^= static_cast<char>(random() % 8);
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    for (Verdict expected = Verdict::whole; expected == Verdict::whole;) {
      expected = judge(bytes);
      ++seen[static_cast<int>(expected)];
      const size_t before = bytes.size();
      try {
        const auto frame = take_frame(bytes);
        ASSERT_EQ(frame.has_value(), expected == Verdict::whole) << "at " << before << " bytes";
        ASSERT_EQ(before - bytes.size(), frame ? encode(*frame).size() : 0);
      } catch (const DataError& error) {
        ASSERT_EQ(expected, Verdict::refused) << error.what();
      }
    }
  }
  for (const int times : seen) EXPECT_GT(times, 1000);
}

}  // namespace
}  // namespace fusedbun::health
