#include "fusedbun/dist/health/proof.h"

#include <sys/random.h>

#if defined(FUSEDBUN_HAS_OPENSSL)
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#endif

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

template <class Bytes>
Bytes random_bytes() {
  Bytes bytes;
  // Up to 256 bytes come whole, by the call's contract.
  FUSEDBUN_ASSERT(::getrandom(bytes.data(), bytes.size(), 0) == std::ssize(bytes),
                  "the kernel has random bytes");
  return bytes;
}

}  // namespace

Token random_token() {
  return random_bytes<Token>();
}

Nonce random_nonce() {
  return random_bytes<Nonce>();
}

#if !defined(FUSEDBUN_HAS_OPENSSL)

void require_proofs() {
  throw UnavailableError(
      "this build has no OpenSSL, with which ranks prove that they belong to one job: install "
      "libssl-dev and build again");
}
Proof proof_of(const Token&, Side, const Challenge&, Hello) {
  FUSEDBUN_ASSERT(false, "proofs are required before they are made");
}
bool is_same(const Proof&, const Proof&) {
  FUSEDBUN_ASSERT(false, "proofs are required before they are compared");
}

#else

void require_proofs() {}

Proof proof_of(const Token& token, Side side, const Challenge& challenge, Hello hello) {
  hello.proof = {};
  std::string said(1, static_cast<char>(side));
  said.append(challenge.nonce.begin(), challenge.nonce.end());
  said += encode(hello);
  Proof proof = {};
  unsigned bytes = 0;
  const auto* const made = ::HMAC(::EVP_sha256(), token.data(), static_cast<int>(token.size()),
                                  reinterpret_cast<const unsigned char*>(said.data()), said.size(),
                                  proof.data(), &bytes);
  FUSEDBUN_ASSERT(made != nullptr && bytes == proof.size(), "OpenSSL has HMAC-SHA-256");
  return proof;
}

bool is_same(const Proof& one, const Proof& other) {
  return ::CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

#endif

}  // namespace fusedbun::health
