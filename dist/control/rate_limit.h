#pragma once
// RateLimit: how many changes each actor may make per second. A token bucket per actor: a second's worth at once, then as many
// as time gives back.
//
// Pure: the time is an argument, on any steady clock. Thread safety: none; the service guards it.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace fusedbun::control {

class RateLimit {
 public:
  /// 0: any number.
  explicit RateLimit(double per_second) : per_second_(per_second) {}

  /// Takes one token; false if there is none.
  bool allows(const std::string& actor, int64_t now_us);

 private:
  static constexpr size_t kActorsMax = 4096;

  struct Bucket {
    double tokens = 0;
    int64_t filled_us = 0;
  };
  double burst() const { return per_second_ > 1 ? per_second_ : 1; }
  double tokens_at(const Bucket& bucket, int64_t now_us) const;

  double per_second_;
  std::map<std::string, Bucket> buckets_;  ///< of actors that may have less than a full one
};

}  // namespace fusedbun::control
