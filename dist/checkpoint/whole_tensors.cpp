#include "fusedbun/dist/checkpoint/whole_tensors.h"

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/safetensors_header.h"

namespace fusedbun::checkpoint {
namespace {

using Index = std::vector<int64_t>;

/// A checkpoint with more corners than this is cut into absurdly many pieces in absurdly many dimensions.
constexpr int64_t kCornersMax = 16'000'000;

std::string text_of(const Index& index) {
  std::string text = "[";
  for (const int64_t number : index) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
  return text + "]";
}

/// Do boxes fill a box exactly? In the count "how many boxes hold this element", each box is a sum of 2^d steps at its corners,
/// of alternating signs. The boxes fill the whole, without gap or overlap, if and only if the steps of all of them add up to
/// those of the whole: a test without comparing each box with each other one.
class CornerSum {
 public:
  /// Only dimensions in which the tensor is cut matter.
  CornerSum(const WholeTensor& tensor, int64_t& corners_left) : corners_left_(corners_left) {
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      const bool is_cut = std::ranges::any_of(tensor.parts, [&](const WholeTensor::Part& part) {
        return part.stored->shape[i] != tensor.shape[i];
      });
      if (is_cut) cut_.push_back(i);
    }
  }

  void add(const Index& offsets, const Index& shape, int weight) {
    const size_t corners = size_t{1} << cut_.size();
    corners_left_ -= static_cast<int64_t>(corners);
    FUSEDBUN_REQUIRE(corners_left_ >= 0, DataError, "the tensors are cut into too many pieces");
    Index corner(shape.size(), 0);
    for (size_t bits = 0; bits < corners; ++bits) {
      int sign = weight;
      for (size_t i = 0; i < cut_.size(); ++i) {
        const bool at_end = bits >> i & 1;
        corner[cut_[i]] = offsets[cut_[i]] + (at_end ? shape[cut_[i]] : 0);
        if (at_end) sign = -sign;
      }
      const auto step = steps_.try_emplace(corner, 0).first;
      step->second += sign;
      if (step->second == 0) steps_.erase(step);
    }
  }
  /// Where the first step is left over; nullptr: everything adds up.
  const Index* first_left() const { return steps_.empty() ? nullptr : &steps_.begin()->first; }

 private:
  int64_t& corners_left_;
  std::vector<size_t> cut_;
  std::map<Index, int64_t> steps_;
};

int64_t elements_of(Dtype dtype, const Index& shape) {
  return tensor_bytes(dtype, shape) * 8 / bits_of(dtype);
}

void check_cover(const WholeTensor& tensor, int64_t& corners_left) {
  const int64_t elements = elements_of(tensor.dtype, tensor.shape);
  for (const WholeTensor::Part& part : tensor.parts) {
    const bool is_empty = elements_of(tensor.dtype, part.stored->shape) == 0;
    FUSEDBUN_REQUIRE(!is_empty || (elements == 0 && tensor.parts.size() == 1), DataError,
                     "a part without elements stands beside others");
  }
  CornerSum sum(tensor, corners_left);
  for (const WholeTensor::Part& part : tensor.parts)
    sum.add(part.stored->offsets, part.stored->shape, 1);
  sum.add(Index(tensor.shape.size(), 0), tensor.shape, -1);
  if (const Index* where = sum.first_left())
    throw DataError(
        "its parts do not cover it exactly: there is a gap or an overlap near element " +
        text_of(*where) + " of " + text_of(tensor.shape));
}

void add_part(WholeTensor& tensor, const WholeTensor::Part& part) {
  const StoredPart& stored = *part.stored;
  if (tensor.parts.empty()) {
    tensor.dtype = stored.dtype;
    tensor.shape.assign(stored.shape.size(), 0);
  }
  FUSEDBUN_REQUIRE(stored.dtype == tensor.dtype, DataError,
                   "its parts are of different types, " + std::string(name_of(tensor.dtype)) +
                       " and " + std::string(name_of(stored.dtype)));
  FUSEDBUN_REQUIRE(stored.shape.size() == tensor.shape.size(), DataError,
                   "its parts have different numbers of dimensions");
  for (size_t i = 0; i < stored.shape.size(); ++i)
    tensor.shape[i] = std::max(tensor.shape[i], stored.offsets[i] + stored.shape[i]);
  tensor.parts.push_back(part);
}

/// Runs `check`, with the tensor's name in every complaint.
template <class Check>
void about(std::string_view folder, std::string_view name, Check check) {
  try {
    check();
  } catch (const DataError& error) {
    throw DataError("tensor '" + std::string(name.substr(0, 80)) + "' of " + std::string(folder) +
                    "/: " + error.what());
  }
}

}  // namespace

std::map<std::string, WholeTensors, std::less<>> put_together(const Manifest& manifest) {
  std::map<std::string, WholeTensors, std::less<>> folders;
  for (const char* folder : {kModelFolder, kOptimizerFolder, kTensorsFolder}) folders[folder];
  for (size_t i = 0; i < manifest.files.size(); ++i) {
    const StoredFile& file = manifest.files[i];
    const std::string folder = file.path.substr(0, file.path.find('/'));
    WholeTensors& tensors = folders.at(folder);
    int64_t begin = header_bytes_of(file);
    for (const StoredPart& part : file.parts) {
      about(folder, part.name, [&] {
        add_part(tensors[part.name], {static_cast<int>(i), begin, &part});
      });
      begin += tensor_bytes(part.dtype, part.shape);
    }
  }
  int64_t corners_left = kCornersMax;
  for (const auto& [folder, tensors] : folders) {
    for (const auto& [name, tensor] : tensors)
      about(folder, name, [&] { check_cover(tensor, corners_left); });
  }
  const WholeTensors& model = folders.at(kModelFolder);
  for (const StoredParameter& parameter : manifest.parameters) {
    const auto values = model.find(parameter.name);
    if (values == model.end()) continue;
    about(kModelFolder, parameter.name, [&] {
      FUSEDBUN_REQUIRE(elements_of(Dtype::F64, parameter.shape) ==
                           elements_of(values->second.dtype, values->second.shape),
                       DataError,
                       "its values are of shape " + text_of(values->second.shape) +
                           ", the parameter is of shape " + text_of(parameter.shape));
    });
  }
  return folders;
}

}  // namespace fusedbun::checkpoint
