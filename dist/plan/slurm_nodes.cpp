#include "fusedbun/dist/plan/slurm_nodes.h"

#include <algorithm>
#include <charconv>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

/// Above what any cluster has; a wrong list must not fill the memory.
constexpr size_t kNodesMax = 100'000;

class NodeList {
 public:
  NodeList(std::string_view name, std::string_view text) : name_(name), text_(text), rest_(text) {}

  std::vector<std::string> expand() {
    std::vector<std::string> nodes;
    do {
      for (std::string& node : expand_word()) add(nodes, std::move(node));
    } while (take(','));
    require(rest_.empty());
    return nodes;
  }

 private:
  void require(bool is_right) const {
    FUSEDBUN_REQUIRE(is_right, ConfigError,
                     std::string(name_) + " = '" + std::string(text_) +
                         "': is no list of nodes, such as node[3-5,07],gpu1");
  }

  void add(std::vector<std::string>& to, std::string text) const {
    require(to.size() < kNodesMax);
    to.push_back(std::move(text));
  }

  bool take(char wanted) {
    if (rest_.empty() || rest_.front() != wanted) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string_view take_until(std::string_view ends) {
    const size_t size = std::min(rest_.find_first_of(ends), rest_.size());
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  /// Names with numbers in brackets, up to a comma outside of them.
  std::vector<std::string> expand_word() {
    std::vector<std::string> words = {std::string(take_until("[],"))};
    while (take('[')) {
      std::vector<std::string> numbers;
      do expand_range(numbers);
      while (take(','));
      require(take(']'));
      const std::string_view suffix = take_until("[],");
      std::vector<std::string> longer;
      for (const std::string& word : words) {
        for (const std::string& number : numbers) add(longer, word + number + std::string(suffix));
      }
      words = std::move(longer);
    }
    require(!words.front().empty());
    return words;
  }

  /// "3-5", or "07": the first number's zeros say how wide all are.
  void expand_range(std::vector<std::string>& numbers) {
    const std::string_view first = take_until("-,]");
    const std::string_view last = take('-') ? take_until(",]") : first;
    const uint64_t begin = number(first), end = number(last);
    require(begin <= end && end - begin < kNodesMax);
    for (uint64_t each = begin; each <= end; ++each) {
      std::string digits = std::to_string(each);
      if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
      add(numbers, std::move(digits));
    }
  }

  uint64_t number(std::string_view digits) const {
    uint64_t value = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stopped, error] = std::from_chars(digits.data(), end, value);
    require(error == std::errc{} && stopped == end);
    return value;
  }

  std::string_view name_, text_, rest_;
};

}  // namespace

std::vector<std::string> expand_node_list(std::string_view name, std::string_view text) {
  return NodeList(name, text).expand();
}

int slurm_port(uint64_t job, uint64_t step) {
  constexpr uint64_t kStepsApart = 101;  // steps of one job that run at a time are fewer
  return kSlurmPortMin + static_cast<int>((job * kStepsApart + step) % kSlurmPorts);
}

}  // namespace fusedbun::plan
