#include "fusedbun/launcher/cli/table.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace fusedbun::launcher {
namespace {

bool starts_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

/// How many bytes the character at the front of `text` takes; 0 if they are no UTF-8.
size_t bytes_of_character(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xF0 && first < 0xF5   ? 4
                      : first >= 0xE0 && first < 0xF0 ? 3
                      : first >= 0xC2 && first < 0xE0 ? 2
                                                      : 0;
  if (size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i) {
    if (starts_character(text[i])) return 0;
  }
  return size;
}

uint32_t code_point(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first;
  uint32_t code = first & (0x7FU >> character.size());
  for (const char byte : character.substr(1))
    code = code << 6 | (static_cast<uint32_t>(byte) & 0x3F);
  return code;
}

/// Controls of the terminal (C0, DEL, C1), of lines and of the direction of writing.
bool steers(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 ||
         code == 0x200E || code == 0x200F || (code >= 0x202A && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069);
}

std::string spelled(const char* format, uint32_t code) {
  char text[16];
  std::snprintf(text, sizeof text, format, code);
  return text;
}

}  // namespace

std::string shown(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const size_t size = bytes_of_character(text);
    const std::string_view character = text.substr(0, std::max<size_t>(size, 1));
    const uint32_t code = size == 0 ? static_cast<unsigned char>(text[0]) : code_point(character);
    if (size != 0 && !steers(code)) {
      line += character;
    } else if (code == '\n') {
      line += "\\n";
    } else {
      line += spelled(code < 0x100 ? "\\x%02x" : "\\u%04x", code);
    }
    text.remove_prefix(character.size());
  }
  return line;
}

size_t width_of(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, starts_character));
}

std::string cut(std::string_view text, size_t width) {
  size_t end = 0;
  for (size_t characters = 0; end < text.size(); ++end) {
    if (starts_character(text[end]) && ++characters > width) break;
  }
  return std::string(text.substr(0, end));
}

std::string padded(std::string text, size_t width) {
  const size_t has = width_of(text);
  if (has < width) text.append(width - has, ' ');
  return text;
}

std::vector<std::string> aligned(const std::vector<std::vector<std::string>>& given) {
  std::vector<std::vector<std::string>> rows = given;
  for (auto& row : rows) std::ranges::transform(row, row.begin(), shown);
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width_of(row[c]));
  }
  std::vector<std::string> lines;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) line += padded(row[c], widths[c]) + "  ";
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace fusedbun::launcher
