#include "fusedbun/dist/control/rate_limit.h"

#include <algorithm>

namespace fusedbun::control {

double RateLimit::tokens_at(const Bucket& bucket, int64_t now_us) const {
  const double seconds = static_cast<double>(now_us - bucket.filled_us) / 1e6;
  return std::min(burst(), bucket.tokens + seconds * per_second_);
}

bool RateLimit::allows(const std::string& actor, int64_t now_us) {
  if (per_second_ == 0) return true;
  if (buckets_.size() >= kActorsMax && !buckets_.contains(actor)) {
    std::erase_if(buckets_,
                  [&](const auto& known) { return tokens_at(known.second, now_us) >= burst(); });
    if (buckets_.size() >= kActorsMax) return false;
  }
  Bucket& bucket = buckets_.try_emplace(actor, Bucket{burst(), now_us}).first->second;
  bucket = {tokens_at(bucket, now_us), now_us};
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

}  // namespace fusedbun::control
