#include "fusedbun/dist/health/proof.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

namespace fusedbun::health {
namespace {

template <class Bytes>
Bytes counting_from(uint8_t first) {
  Bytes bytes;
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}

Proof from_hex(const std::string& text) {
  Proof proof;
  for (size_t i = 0; i < proof.size(); ++i) {
    proof[i] = static_cast<uint8_t>(std::strtoul(text.substr(2 * i, 2).c_str(), nullptr, 16));
  }
  return proof;
}

const Token kToken = counting_from<Token>(0);
const Challenge kChallenge{counting_from<Nonce>(16)};
const Hello kHello{
    .info = {.rank = 3, .local_rank = 1, .pid = 4711, .host = "node3", .device = "cpu"},
    .nonce = counting_from<Nonce>(32)};

// Python's hmac over the side, the challenge's nonce and the Hello as it travels, with zeros for its proof:
//   body = struct.pack("<iiq", 3, 1, 4711) + b"node3".ljust(64, b"\0") + b"cpu".ljust(16, b"\0") + bytes(range(32, 48)) + bytes(32)
//   hmac.new(bytes(range(16)), bytes([side]) + bytes(range(16, 32)) + struct.pack("<IHH", len(body), 1, 4) + body, "sha256")
TEST(Proof, IsHmacSha256OverWhatBothHaveSaid) {
  EXPECT_EQ(proof_of(kToken, Side::joining, kChallenge, kHello),
            from_hex("92918e174d2eeb12438cc73039285c9938012bab5c95184b376d7c488f36c486"));
  EXPECT_EQ(proof_of(kToken, Side::listening, kChallenge, kHello),
            from_hex("3aea8637deed0d6a393701b1b77af2d5ecf751900dd119cfc7ac446ca2ed42b3"));
}

TEST(Proof, FitsNothingElse) {
  const Proof proof = proof_of(kToken, Side::joining, kChallenge, kHello);
  Hello same = kHello;
  same.proof = proof;  // it cannot be over itself
  EXPECT_EQ(proof_of(kToken, Side::joining, kChallenge, same), proof);

  Token token = kToken;
  token[15] ^= 1;
  EXPECT_NE(proof_of(token, Side::joining, kChallenge, kHello), proof);
  Challenge challenge = kChallenge;
  challenge.nonce[0] ^= 1;
  EXPECT_NE(proof_of(kToken, Side::joining, challenge, kHello), proof);
  Hello hello = kHello;
  hello.nonce[0] ^= 1;
  EXPECT_NE(proof_of(kToken, Side::joining, kChallenge, hello), proof);
  hello = kHello;
  hello.info.rank = 4;
  EXPECT_NE(proof_of(kToken, Side::joining, kChallenge, hello), proof);
}

TEST(Proof, TwoAreTheSameOnlyInEveryByte) {
  const Proof proof = proof_of(kToken, Side::joining, kChallenge, kHello);
  EXPECT_TRUE(is_same(proof, proof));
  for (size_t i = 0; i < proof.size(); ++i) {
    Proof other = proof;
    other[i] ^= 0x80;
    EXPECT_FALSE(is_same(proof, other)) << i;
  }
}

}  // namespace
}  // namespace fusedbun::health
