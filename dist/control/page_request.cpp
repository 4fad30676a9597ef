#include "fusedbun/dist/control/page_request.h"

#include <algorithm>
#include <charconv>

namespace fusedbun::control {
namespace {

constexpr int kPageDefault = 50;
constexpr int kPageMax = 1000;

}  // namespace

std::variant<PageRequest, changes::Refusal> read_page(int size, const std::string& token,
                                                      int64_t begin) {
  if (size < 0) return changes::invalid("BAD_PAGE_SIZE", "page_size is negative");
  PageRequest page{.first = begin, .size = size == 0 ? kPageDefault : std::min(size, kPageMax)};
  if (token.empty()) return page;
  const char* end = token.data() + token.size();
  const auto read = std::from_chars(token.data(), end, page.first);
  if (read.ec != std::errc{} || read.ptr != end || page.first < begin)
    return changes::invalid("BAD_PAGE_TOKEN", "page_token is none that this server gave");
  return page;
}

}  // namespace fusedbun::control
