#include "fusedbun/dist/checkpoint/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fusedbun/dist/plan/hex.h"

namespace fusedbun::checkpoint {

struct RunningDigest::State {
  XXH3_state_t xxh3;
};

Digest digest_of(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

std::string to_hex(const Digest& digest) {
  return plan::to_hex(digest.high) + plan::to_hex(digest.low);
}

std::optional<Digest> read_digest(std::string_view text) {
  if (text.size() != 32) return std::nullopt;
  const auto high = plan::from_hex(text.substr(0, 16));
  const auto low = plan::from_hex(text.substr(16));
  if (!high || !low) return std::nullopt;
  return Digest{*high, *low};
}

RunningDigest::RunningDigest() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}
RunningDigest::~RunningDigest() = default;

void RunningDigest::add(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

Digest RunningDigest::value() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return {hash.high64, hash.low64};
}

}  // namespace fusedbun::checkpoint
