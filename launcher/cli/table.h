#pragma once
// Table: rows of words as aligned columns. Widths count characters of UTF-8, not bytes.
//
// Thread safety: functions without state.
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::launcher {

/// How many characters of a terminal `text` takes; every character of it is one cell wide.
size_t width_of(std::string_view text);
/// At most `width` characters of it.
std::string cut(std::string_view text, size_t width);
/// Filled with blanks to `width` characters.
std::string padded(std::string text, size_t width);

/// Text of others on one line of a terminal: what would steer the terminal, begin a line or turn the direction of writing is spelled
/// out (\x1b, \n, \u202e), and so are bytes that are no UTF-8. Shown twice it stays the same. The last thing before text is printed.
std::string shown(std::string_view text);

/// One line per row, each cell as shown() gives it, two blanks between columns, none at the end. A row may be shorter than the first.
std::vector<std::string> aligned(const std::vector<std::vector<std::string>>& rows);

}  // namespace fusedbun::launcher
