#pragma once
// Proofs that both ends of a heartbeat connection know the job's token, which itself never travels on it: HMAC-SHA-256
// (OpenSSL's) over what both have said, so that no proof fits another connection, the other direction or another info.
//
// Thread safety: functions without state.
#include "fusedbun/dist/health/frame.h"

namespace fusedbun::health {

/// Known to the ranks of one attempt of one job alone.
using Token = std::array<uint8_t, 16>;

/// Throws UnavailableError if this was built without OpenSSL: then nobody can prove anything.
void require_proofs();

/// Both from the kernel.
Token random_token();
Nonce random_nonce();

/// Who proves something.
enum class Side : uint8_t { joining = 1, listening = 2 };
/// `hello.proof` is left out.
Proof proof_of(const Token& token, Side side, const Challenge& challenge, Hello hello);
/// Takes as long for any two.
bool is_same(const Proof& one, const Proof& other);

}  // namespace fusedbun::health
