#include "fusedbun/dist/run_folder/utc_time.h"

#include <array>
#include <cctype>
#include <chrono>
#include <cstdio>

namespace fusedbun::run_folder {
namespace {

constexpr int64_t kMicroseconds = 1'000'000;

std::string text_of(std::time_t time, const char* format) {
  std::tm parts{};
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), format, ::gmtime_r(&time, &parts));
  return text.data();
}

}  // namespace

std::string utc_text(std::time_t time) {
  return text_of(time, "%Y-%m-%dT%H:%M:%SZ");
}

std::string utc_text_us(int64_t time_us) {
  const int64_t fraction = ((time_us % kMicroseconds) + kMicroseconds) % kMicroseconds;
  std::array<char, 16> digits{};
  std::snprintf(digits.data(), digits.size(), ".%06dZ", static_cast<int>(fraction));
  return text_of((time_us - fraction) / kMicroseconds, "%Y-%m-%dT%H:%M:%S") + digits.data();
}

std::optional<int64_t> read_utc_us(const std::string& text) {
  std::tm parts{};
  const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr) return std::nullopt;
  int64_t fraction_us = 0;
  if (*rest == '.') {
    int64_t weight = kMicroseconds / 10;
    int digits = 0;
    for (++rest; std::isdigit(static_cast<unsigned char>(*rest)) != 0; ++rest, ++digits) {
      fraction_us += (*rest - '0') * weight;
      weight /= 10;
    }
    if (digits == 0 || digits > 9) return std::nullopt;
  }
  if (std::string_view(rest) != "Z") return std::nullopt;
  return static_cast<int64_t>(::timegm(&parts)) * kMicroseconds + fraction_us;
}

int64_t utc_now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace fusedbun::run_folder
