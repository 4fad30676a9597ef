#include "fusedbun/launcher/data/document_index.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'F', 'B', 'D', 'O', 'C', 'S', '0', '1'};
constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
constexpr int64_t kTokensAtOnce = 1 << 20;

struct Header {
  char magic[8];
  uint64_t tokens, separator, documents, spans, fingerprint;
};
static_assert(sizeof(Header) == 48);

void require(bool holds, const fs::path& path, const char* what) {
  FUSEDBUN_REQUIRE(holds, DataError,
                   path.string() + " is damaged (" + what +
                       "): remove it, and it is made anew from a file that others have written; "
                       "fusedbun data tokenize writes its files again");
}

bool is_ordered(std::span<const TokenSpan> spans, uint64_t tokens) {
  uint64_t end = 0;
  for (const TokenSpan& span : spans) {
    if (span.begin < end || span.end < span.begin || span.end > tokens) return false;
    end = span.end;
  }
  return true;
}

}  // namespace

DocumentIndex::DocumentIndex(std::vector<uint64_t> begins, std::vector<TokenSpan> spans,
                             std::optional<int64_t> separator)
    : own_begins_(std::move(begins)),
      own_spans_(std::move(spans)),
      begins_(own_begins_),
      spans_(own_spans_),
      separator_(separator) {
  FUSEDBUN_ASSERT(!begins_.empty(), "the last begin is the number of tokens");
}

DocumentIndex::DocumentIndex(DocumentIndex&& other) noexcept {
  *this = std::move(other);
}

DocumentIndex& DocumentIndex::operator=(DocumentIndex&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  // The views keep pointing to the vectors' memory, which moves with them.
  own_begins_ = std::move(other.own_begins_);
  own_spans_ = std::move(other.own_spans_);
  mapped_ = std::exchange(other.mapped_, nullptr);
  mapped_bytes_ = std::exchange(other.mapped_bytes_, 0);
  begins_ = std::exchange(other.begins_, {});
  spans_ = std::exchange(other.spans_, {});
  separator_ = other.separator_;
  return *this;
}

DocumentIndex::~DocumentIndex() {
  unmap();
}

void DocumentIndex::unmap() {
  if (mapped_ != nullptr) ::munmap(mapped_, mapped_bytes_);
}

fs::path DocumentIndex::beside(const fs::path& token_file) {
  return token_file.string() + ".documents";
}

std::optional<DocumentIndex> DocumentIndex::open(const fs::path& path, const TokenFile& file,
                                                 std::optional<int64_t> separator) {
  const run_folder::Descriptor opened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened.is_open() && (errno == ENOENT || errno == ENOTDIR)) return std::nullopt;
  struct stat status {};
  const bool is_readable = opened.is_open() && ::fstat(opened.value(), &status) == 0;
  FUSEDBUN_REQUIRE(is_readable, DataError,
                   "cannot read " + path.string() + ": " + std::generic_category().message(errno));
  const auto bytes = static_cast<size_t>(status.st_size);
  require(bytes >= sizeof(Header), path, "it is too short");
  void* const mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, opened.value(), 0);
  FUSEDBUN_REQUIRE(mapped != MAP_FAILED, DataError,
                   "cannot map " + path.string() + ": " + std::generic_category().message(errno));
  DocumentIndex index;
  index.mapped_ = mapped;
  index.mapped_bytes_ = bytes;
  Header header;
  std::memcpy(&header, mapped, sizeof header);
  require(std::equal(std::begin(kMagic), std::end(kMagic), header.magic), path,
          "it does not begin as an index of documents");
  const uint64_t words = (bytes - sizeof header) / sizeof(uint64_t);
  require(
      header.documents < words && header.spans <= (words - header.documents - 1) / 2 &&
          (bytes - sizeof header) == (header.documents + 1 + 2 * header.spans) * sizeof(uint64_t),
      path, "its size is not what its header says");
  const bool was_found = header.separator != kNone;
  const bool is_of_file = header.tokens == static_cast<uint64_t>(file.tokens()) &&
                          header.fingerprint == file.fingerprint();
  if (was_found && (!is_of_file || (separator && header.separator != uint64_t(*separator))))
    return std::nullopt;
  FUSEDBUN_REQUIRE(is_of_file, DataError,
                   path.string() + " is not the index of " + file.path().string() +
                       ", which is another file by now: write both again with fusedbun data "
                       "tokenize");
  const auto* const begins =
      reinterpret_cast<const uint64_t*>(static_cast<char*>(mapped) + sizeof header);
  index.begins_ = {begins, header.documents + 1};
  index.spans_ = {reinterpret_cast<const TokenSpan*>(begins + header.documents + 1), header.spans};
  if (was_found) index.separator_ = static_cast<int64_t>(header.separator);
  // What lies between is looked at where it is used; all of it would be read at every start.
  require(index.begins_.front() == 0 && index.begins_.back() == header.tokens, path,
          "its documents are not those of its tokens");
  return index;
}

void DocumentIndex::write(const fs::path& path, const TokenFile& file) const {
  FUSEDBUN_ASSERT(begins_.back() == static_cast<uint64_t>(file.tokens()) &&
                      std::ranges::is_sorted(begins_) && is_ordered(spans_, begins_.back()),
                  "an index is that of its file");
  Header header{{},
                begins_.back(),
                separator_ ? static_cast<uint64_t>(*separator_) : kNone,
                static_cast<uint64_t>(documents()),
                spans_.size(),
                file.fingerprint()};
  std::ranges::copy(kMagic, header.magic);
  run_folder::AtomicFile out(path);
  out.write(std::as_bytes(std::span(&header, 1)));
  out.write(std::as_bytes(begins_));
  out.write(std::as_bytes(spans_));
  out.commit();
}

DocumentIndex find_documents(const TokenFile& file, int64_t separator) {
  std::vector<uint64_t> begins = {0};
  std::vector<uint32_t> buffer(static_cast<size_t>(std::min(file.tokens(), kTokensAtOnce)));
  bool is_first = false;  // documents begin with the separator
  for (int64_t at = 0; at < file.tokens(); at += kTokensAtOnce) {
    const auto tokens =
        std::span(buffer).first(static_cast<size_t>(std::min(kTokensAtOnce, file.tokens() - at)));
    file.read(at, tokens);
    if (at == 0) is_first = tokens[0] == separator;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] != separator) continue;
      const uint64_t begin = static_cast<uint64_t>(at) + i + (is_first ? 0 : 1);
      if (begin > begins.back() && begin < static_cast<uint64_t>(file.tokens()))
        begins.push_back(begin);
    }
  }
  begins.push_back(static_cast<uint64_t>(file.tokens()));
  return {std::move(begins), {}, separator};
}

DocumentIndex documents_of(const TokenFile& file, std::optional<int64_t> separator,
                           const fs::path& spare_folder,
                           const std::function<void(const std::string& sentence)>& notice) {
  const fs::path beside = DocumentIndex::beside(file.path());
  const fs::path spare = spare_folder.empty() ? fs::path() : spare_folder / beside.filename();
  if (auto index = DocumentIndex::open(beside, file, separator)) return std::move(*index);
  FUSEDBUN_REQUIRE(!file.layout().has_index, DataError,
                   file.path().string() +
                       " was written with an index beside it, which says which "
                       "tokens carry loss: " +
                       beside.string() + " is missing");
  if (!spare.empty()) {
    if (auto index = DocumentIndex::open(spare, file, separator)) return std::move(*index);
  }
  if (!separator) return {{0, static_cast<uint64_t>(file.tokens())}, {}, std::nullopt};
  notice("looking for the documents of " + file.path().string() + " (token " +
         std::to_string(*separator) + " parts them), once");
  DocumentIndex found = find_documents(file, *separator);
  for (const fs::path& path : {beside, spare}) {
    if (path.empty()) continue;
    try {
      found.write(path, file);
      return found;
    } catch (const IoError& error) {
      notice(std::string(error.what()) + ": the index of documents is not kept there");
    }
  }
  return found;
}

}  // namespace fusedbun::data
