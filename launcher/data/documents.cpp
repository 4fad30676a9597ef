#include "fusedbun/launcher/data/documents.h"

#include <algorithm>
#include <utility>

#include "fusedbun/launcher/data/sample_order.h"

namespace fusedbun::data {

void Documents::append(DocumentIndex index) {
  const int64_t tokens = static_cast<int64_t>(index.begins().back());
  const int64_t documents = index.documents();
  has_loss_spans_ |= !index.spans().empty();
  for (const uint64_t value :
       {index.begins().back(), static_cast<uint64_t>(documents), uint64_t{index.spans().size()}})
    digest_ = mixed(digest_ ^ value);
  files_.push_back({tokens_, count_, std::move(index)});
  tokens_ += tokens;
  count_ += documents;
}

const Documents::File& Documents::file_of_document(int64_t document) const {
  return *(std::ranges::upper_bound(files_, document, {}, &File::document) - 1);
}

int64_t Documents::begin(int64_t document) const {
  if (document == count_) return tokens_;
  const File& file = file_of_document(document);
  return file.token +
         static_cast<int64_t>(file.index.begins()[static_cast<size_t>(document - file.document)]);
}

int64_t Documents::at(int64_t token) const {
  const File& file = *(std::ranges::upper_bound(files_, token, {}, &File::token) - 1);
  const auto begins = file.index.begins();
  const auto after = std::ranges::upper_bound(begins, static_cast<uint64_t>(token - file.token));
  return file.document + (after - begins.begin()) - 1;
}

std::optional<int64_t> Documents::separator_of(int64_t document) const {
  return file_of_document(document).index.separator();
}

void Documents::clear_without_loss(int64_t begin, std::span<bool> carries) const {
  const int64_t end = begin + std::ssize(carries);
  for (auto file = std::ranges::upper_bound(files_, begin, {}, &File::token) - 1;
       file != files_.end() && file->token < end; ++file) {
    const auto spans = file->index.spans();
    if (spans.empty()) continue;
    const int64_t last = file->token + static_cast<int64_t>(file->index.begins().back());
    int64_t at = std::max(begin, file->token);
    auto span = std::ranges::upper_bound(spans, static_cast<uint64_t>(at - file->token), {},
                                         &TokenSpan::end);
    while (at < std::min(end, last)) {
      const bool is_left = span != spans.end();
      const int64_t from = is_left ? file->token + static_cast<int64_t>(span->begin) : last;
      for (; at < std::min({from, end, last}); ++at)
        carries[static_cast<size_t>(at - begin)] = false;
      if (is_left) at = std::max(at, file->token + static_cast<int64_t>((span++)->end));
    }
  }
}

}  // namespace fusedbun::data
