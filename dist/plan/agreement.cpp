#include "fusedbun/dist/plan/agreement.h"

#include <cmath>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

constexpr size_t kNonfinite = 0;
constexpr size_t kSumOfSquares = 1;
constexpr size_t kFirstUsed = 2;

}  // namespace

std::vector<double> agreement_message(bool nonfinite, double sum_of_squares,
                                      const std::vector<bool>& used) {
  std::vector<double> message(kFirstUsed + used.size());
  message[kNonfinite] = nonfinite ? 1 : 0;
  message[kSumOfSquares] = sum_of_squares;
  for (size_t parameter = 0; parameter < used.size(); ++parameter)
    message[kFirstUsed + parameter] = used[parameter];
  return message;
}

Agreement read_agreement(std::span<const double> message, double max_grad_norm) {
  FUSEDBUN_ASSERT(message.size() >= kFirstUsed,
                  "an agreement message of " + std::to_string(message.size()) + " entries");
  Agreement agreement;
  agreement.nonfinite = message[kNonfinite] > 0;
  agreement.gradient_norm = std::sqrt(message[kSumOfSquares]);
  if (max_grad_norm > 0 && agreement.gradient_norm > max_grad_norm) {
    agreement.gradient_scale = max_grad_norm / agreement.gradient_norm;
  }
  agreement.used.reserve(message.size() - kFirstUsed);
  for (double count : message.subspan(kFirstUsed)) agreement.used.push_back(count > 0);
  return agreement;
}

}  // namespace fusedbun::plan
