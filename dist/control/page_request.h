#pragma once
// PageRequest: which part of a list a client wants. A token is the number of the first element of the page, as text.
//
// Thread safety: functions without state.
#include <cstdint>
#include <string>
#include <variant>

#include "fusedbun/dist/changes/change_request.h"

namespace fusedbun::control {

struct PageRequest {
  int64_t first = 0;
  int size = 0;
};

/// `size` 0 means 50, more than 1,000 means 1,000. `begin` is the number of the list's first element. INVALID_ARGUMENT
/// BAD_PAGE_SIZE or BAD_PAGE_TOKEN.
std::variant<PageRequest, changes::Refusal> read_page(int size, const std::string& token,
                                                      int64_t begin);

}  // namespace fusedbun::control
