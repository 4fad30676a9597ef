#pragma once
// Digest: XXH3 with 128 bits, by which a checkpoint finds bits that have changed. No protection against people.
//
// Thread safety: values and functions without state; one RunningDigest belongs to one thread.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace fusedbun::checkpoint {

/// XXH3 with 128 bits, of bytes as they lie in the file.
struct Digest {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const Digest&) const = default;
};
Digest digest_of(std::span<const std::byte> bytes);
std::string to_hex(const Digest& digest);  ///< 32 digits, as `xxhsum -H2` prints them
/// The value of 32 lower-case digits; nothing for any other text.
std::optional<Digest> read_digest(std::string_view text);

/// The digest of bytes that come piece by piece.
class RunningDigest {
 public:
  RunningDigest();
  ~RunningDigest();
  RunningDigest(const RunningDigest&) = delete;  // owns the state

  void add(std::span<const std::byte> bytes);
  Digest value() const;  ///< of all bytes so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusedbun::checkpoint
