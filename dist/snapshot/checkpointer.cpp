#include "fusedbun/dist/snapshot/checkpointer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/utc_time.h"
#include "fusedbun/dist/snapshot/checkpoint_writer.h"
#include "fusedbun/dist/snapshot/compatibility.h"
#include "fusedbun/dist/snapshot/optimizer_access.h"
#include "fusedbun/dist/snapshot/stored_tensors.h"

namespace fusedbun {
namespace {

using checkpoint::CheckpointReader;
using checkpoint::WholeTensor;
using snapshot::CopiedState;
using snapshot::OptimizerAccess;
using snapshot::StoredTensorHere;

std::unique_ptr<comm::Communicator> group_of_all(comm::Communicator& host) {
  std::vector<int> ranks(static_cast<size_t>(host.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return host.group(ranks);
}

bool is_transposed(const CheckpointContents& contents, const plan::ParameterSpec& parameter) {
  return parameter.shape.size() == 2 && contents.is_stored_transposed &&
         contents.is_stored_transposed(parameter.name);
}

// ---- saving -------------------------------------------------------------------------------------

checkpoint::Manifest manifest_of(const CheckpointContents& contents,
                                 const OptimizerAccess& optimizer,
                                 const OptimizerAccess::ReplicatedState& state, int world_size) {
  checkpoint::Manifest manifest;
  manifest.job_step = state.job_step;
  manifest.skipped_steps = state.skipped_steps;
  manifest.gradient_norm = state.gradient_norm;
  manifest.loss_scale = state.loss_scale;
  manifest.world_size = world_size;
  manifest.written = run_folder::utc_text(run_folder::utc_now_us() / 1'000'000);
  manifest.version = FUSEDBUN_VERSION;
  for (const plan::ParameterSpec& parameter : optimizer.parameters()) {
    manifest.parameters.push_back({.name = parameter.name,
                                   .shape = parameter.shape,
                                   .type = parameter.type,
                                   .group = parameter.group,
                                   .matrix_view = parameter.matrix_view,
                                   .transposed = is_transposed(contents, parameter)});
  }
  for (size_t g = 0; g < state.groups.size(); ++g) {
    manifest.groups.push_back({state.groups[g], state.changes.overrides.lr_pin[g]});
  }
  manifest.max_grad_norm = state.changes.overrides.max_grad_norm;
  manifest.lr_scale = state.changes.overrides.lr_scale;
  manifest.active_revision = state.changes.active_revision;
  manifest.known_revision = state.changes.known_revision;
  manifest.chain_hash = state.changes.chain_hash;
  manifest.scheduled = state.changes.scheduled;
  manifest.values = contents.values;
  return manifest;
}

/// All that this rank writes.
std::vector<StoredTensorHere> tensors_to_write(const CheckpointContents& contents,
                                               OptimizerAccess& optimizer,
                                               const OptimizerAccess::ReplicatedState& state,
                                               int rank, int world_size) {
  std::vector<StoredTensorHere> all;
  const auto add = [&](std::vector<StoredTensorHere> tensors) {
    for (StoredTensorHere& tensor : tensors) {
      if (!tensor.written.empty()) all.push_back(std::move(tensor));
    }
  };
  for (const OptimizerAccess::OwnedRows& rows : optimizer.owned_rows()) {
    const plan::ParameterSpec& parameter =
        optimizer.parameters()[static_cast<size_t>(rows.parameter)];
    add(snapshot::tensors_of_rows(rows, parameter, is_transposed(contents, parameter)));
  }
  add(snapshot::tensors_beside(contents, optimizer.tensors(), contents.is_stored_transposed, rank,
                               world_size));
  add(snapshot::tensors_without_elements(optimizer, rank));
  add(snapshot::counts_of(optimizer, state, rank));
  return all;
}

size_t bytes_of(const plan::Box& box, const at::Tensor& memory) {
  return static_cast<size_t>(box.entries) * memory.element_size();
}

/// Each box of `written` goes to `out`, as the file has it.
void copy_boxes(const StoredTensorHere& tensor, std::byte* out) {
  at::Tensor memory = tensor.memory;
  if (!tensor.transposed) memory = memory.contiguous().view({-1});
  for (const plan::Box& box : tensor.written) {
    const at::Tensor part = tensor.transposed ? memory.t().narrow(0, box.offsets[0], box.shape[0])
                                              : memory.narrow(0, box.begin, box.entries);
    at::from_blob(out, part.sizes(), memory.options().device(at::kCPU)).copy_(part);
    out += bytes_of(box, memory);
  }
}

/// The file of a folder to which a box goes: a file has a name once, so the second box of a tensor goes to the second file.
CopiedState::File& file_of(std::vector<CopiedState::File>& files, const char* folder, int index) {
  const auto found = std::ranges::find_if(files, [&](const CopiedState::File& file) {
    return file.folder == folder && file.index == index;
  });
  if (found != files.end()) return *found;
  files.push_back({.folder = folder, .index = index, .count = 1, .parts = {}});
  return files.back();
}

CopiedState copy_state(std::span<const StoredTensorHere> tensors, std::vector<std::byte> memory) {
  CopiedState copied;
  // Each tensor starts at a multiple of 64 bytes, so that every type is aligned.
  constexpr size_t kAlignment = 64;
  size_t bytes = 0;
  std::vector<size_t> places;
  for (const StoredTensorHere& tensor : tensors) {
    places.push_back(bytes);
    for (const plan::Box& box : tensor.written) bytes += bytes_of(box, tensor.memory);
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  copied.memory = std::move(memory);
  copied.memory.resize(bytes);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensorHere& tensor = tensors[i];
    std::byte* place = copied.memory.data() + places[i];
    copy_boxes(tensor, place);
    int index = 0;
    for (const plan::Box& box : tensor.written) {
      const size_t size = bytes_of(box, tensor.memory);
      file_of(copied.files, tensor.folder, ++index)
          .parts.push_back({tensor.name, tensor.dtype, box.shape, box.offsets, {place, size}});
      place += size;
    }
  }
  for (CopiedState::File& file : copied.files) {
    file.count =
        static_cast<int>(std::ranges::count(copied.files, file.folder, &CopiedState::File::folder));
  }
  return copied;
}

// ---- loading ------------------------------------------------------------------------------------

/// Reads the boxes of `stored` into its memory.
void read_into(const CheckpointReader& reader, const StoredTensorHere& stored) {
  const WholeTensor* whole = reader.find(stored.folder, stored.name);
  FUSEDBUN_ASSERT(whole != nullptr, "a tensor was read before it was looked for");
  const auto read = [&](const plan::Box& box, std::byte* out) {
    const size_t bytes = bytes_of(box, stored.memory);
    reader.read(*whole, {box.offsets, box.shape}, {out, bytes});
  };
  if (stored.transposed) {
    const plan::Box& box = stored.boxes.front();
    const at::Tensor turned = at::empty(box.shape, stored.memory.options().device(at::kCPU));
    read(box, static_cast<std::byte*>(turned.data_ptr()));
    stored.memory.copy_(turned.t());
    return;
  }
  const bool in_place = stored.memory.is_cpu() && stored.memory.is_contiguous();
  const at::Tensor target =
      in_place ? stored.memory
               : at::empty(stored.memory.sizes(), stored.memory.options().device(at::kCPU),
                           at::MemoryFormat::Contiguous);
  auto* const memory = static_cast<std::byte*>(target.data_ptr());
  for (const plan::Box& box : stored.boxes) {
    read(box, memory + box.begin * static_cast<int64_t>(target.element_size()));
  }
  if (!in_place) stored.memory.copy_(target);
}

/// Why the checkpoint has no such tensor; empty: it has.
std::string difference(const CheckpointReader& reader, const StoredTensorHere& stored) {
  const WholeTensor* whole = reader.find(stored.folder, stored.name);
  const std::string name = "'" + stored.name + "' ";
  if (whole == nullptr) return name + "is not in it";
  if (whole->shape != stored.shape) return name + "has another shape in it than here";
  if (whole->dtype != stored.dtype) {
    return name + "is " + std::string(name_of(whole->dtype)) + " in it and " +
           std::string(name_of(stored.dtype)) + " here";
  }
  return {};
}

/// A checkpoint that was opened and compared with what is to be loaded.
class Loading {
 public:
  Loading(const CheckpointReader& reader, const CheckpointContents& contents,
          OptimizerAccess& optimizer)
      : reader_(reader), optimizer_(optimizer) {
    const checkpoint::Manifest& saved = reader.manifest();
    compatibility_ = snapshot::compare(saved, optimizer.parameters(), optimizer.group_options());
    for (const auto& parameter : saved.parameters) {
      if (parameter.transposed) transposed_.insert(parameter.name);
    }
    for (const OptimizerAccess::OwnedRows& rows : optimizer.owned_rows()) {
      if (!fits(rows.parameter)) continue;
      for (const StoredTensorHere& stored : tensors_of(rows)) {
        const std::string different = difference(reader, stored);
        FUSEDBUN_REQUIRE(different.empty(), DataError, reader.folder().string() + ": " + different);
      }
    }
    // A parameter that is frozen here may have been trained there.
    const auto is_transposed_there = [&](std::string_view name) {
      const bool was_trained =
          std::ranges::find(saved.parameters, name, &checkpoint::StoredParameter::name) !=
          saved.parameters.end();
      if (was_trained) return transposed_.contains(name);
      return contents.is_stored_transposed && contents.is_stored_transposed(name);
    };
    for (StoredTensorHere& stored :
         snapshot::tensors_beside(contents, optimizer.tensors(), is_transposed_there, 0, 1)) {
      const std::string different = difference(reader, stored);
      if (different.empty()) {
        beside_.push_back(std::move(stored));
      } else {
        compatibility_.differences.push_back(different);
      }
    }
    note_what_is_left(saved, contents);
  }

  const std::vector<std::string>& differences() const { return compatibility_.differences; }

  OptimizerAccess::ReplicatedState state() const {
    const checkpoint::Manifest& saved = reader_.manifest();
    OptimizerAccess::ReplicatedState state;
    state.job_step = saved.job_step;
    state.skipped_steps = saved.skipped_steps;
    state.gradient_norm = saved.gradient_norm;
    state.loss_scale = saved.loss_scale;
    const std::vector<Options> groups = optimizer_.group_options();
    for (size_t p = 0; p < optimizer_.parameters().size(); ++p) {
      const plan::ParameterSpec& parameter = optimizer_.parameters()[p];
      const bool by_rms = groups[static_cast<size_t>(parameter.group)].scale_by_parameter_rms;
      const bool is_saved = fits(static_cast<int>(p));
      state.step_counts.push_back(is_saved ? count<int64_t>(parameter.name, "step") : 0);
      state.sums_of_squares.push_back(is_saved && by_rms
                                          ? count<double>(parameter.name, "sum_of_squares")
                                          : std::numeric_limits<double>::quiet_NaN());
    }
    state.changes.overrides.lr_pin.resize(groups.size());
    if (!compatibility_.groups_fit) {
      state.groups = groups;
      return state;
    }
    for (size_t g = 0; g < groups.size(); ++g) {
      state.groups.push_back(saved.groups[g].options);
      state.changes.overrides.lr_pin[g] = saved.groups[g].lr_pin;
    }
    state.changes.overrides.max_grad_norm = saved.max_grad_norm;
    state.changes.overrides.lr_scale = saved.lr_scale;
    state.changes.active_revision = saved.active_revision;
    state.changes.known_revision = saved.known_revision;
    state.changes.chain_hash = saved.chain_hash;
    state.changes.scheduled = saved.scheduled;
    return state;
  }

  void read_rows(const OptimizerAccess::OwnedRows& rows) const {
    if (!fits(rows.parameter)) return;
    for (const StoredTensorHere& stored : tensors_of(rows)) read_into(reader_, stored);
  }
  void read_beside() const {
    for (const StoredTensorHere& stored : beside_) read_into(reader_, stored);
  }

 private:
  bool fits(int parameter) const { return compatibility_.fits[static_cast<size_t>(parameter)]; }

  std::vector<StoredTensorHere> tensors_of(const OptimizerAccess::OwnedRows& rows) const {
    const plan::ParameterSpec& parameter =
        optimizer_.parameters()[static_cast<size_t>(rows.parameter)];
    return snapshot::tensors_of_rows(rows, parameter, transposed_.contains(parameter.name));
  }

  template <class Number>
  Number count(const std::string& parameter, const std::string& field) const {
    const std::string name = snapshot::state_name(parameter, field);
    const WholeTensor* whole = reader_.find(checkpoint::kOptimizerFolder, name);
    const auto type =
        std::is_same_v<Number, int64_t> ? checkpoint::Dtype::I64 : checkpoint::Dtype::F64;
    FUSEDBUN_REQUIRE(whole != nullptr && whole->shape.empty() && whole->dtype == type, DataError,
                     reader_.folder().string() + ": '" + name + "' is missing, or no number");
    Number value = 0;
    reader_.read(*whole, {}, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  /// Tensors of the checkpoint that nothing here asks for.
  void note_what_is_left(const checkpoint::Manifest& saved, const CheckpointContents& contents) {
    std::set<std::string, std::less<>> known;
    for (const auto& parameter : saved.parameters) known.insert(parameter.name);
    for (const StoredTensorHere& stored : beside_) known.insert(stored.name);
    for (const auto& tensor : reader_.tensors(checkpoint::kModelFolder)) {
      const std::string& name = tensor.first;
      // Without a model nobody asks for its other tensors.
      if (contents.model == nullptr || known.contains(name)) continue;
      compatibility_.differences.push_back("its '" + name + "' is nothing of the model's");
    }
    for (const auto& tensor : reader_.tensors(checkpoint::kTensorsFolder)) {
      if (contents.tensors.contains(tensor.first)) continue;
      compatibility_.differences.push_back("its tensor '" + tensor.first + "' was not asked for");
    }
  }

  const CheckpointReader& reader_;
  OptimizerAccess& optimizer_;
  snapshot::Compatibility compatibility_;
  std::set<std::string, std::less<>> transposed_;
  std::vector<StoredTensorHere> beside_;
};

}  // namespace

Checkpointer::Checkpointer(comm::Communicator& host, CheckpointerOptions options)
    : host_(host), options_(std::move(options)) {
  writer_ = std::make_unique<snapshot::CheckpointWriter>(group_of_all(host_), options_);
}

Checkpointer::Checkpointer(CheckpointerOptions options)
    : own_host_(std::move(comm::make_local_communicators(1).front())),
      host_(*own_host_),
      options_(std::move(options)) {
  writer_ = std::make_unique<snapshot::CheckpointWriter>(group_of_all(host_), options_);
}

Checkpointer::~Checkpointer() = default;

SaveStart Checkpointer::save(const CheckpointContents& contents) {
  const at::NoGradGuard no_grad;
  const std::vector<uint8_t> busy =
      comm::all_gather_object(host_, static_cast<uint8_t>(writer_->is_busy()));
  if (std::ranges::any_of(busy, [](uint8_t is) { return is != 0; })) {
    std::visit(
        [&](const auto* optimizer) {
          if (optimizer != nullptr) refuse(optimizer->job_step());
        },
        contents.optimizer);
    return SaveStart::under_way;
  }
  const std::unique_ptr<OptimizerAccess> optimizer = snapshot::open_optimizer(contents);
  const OptimizerAccess::ReplicatedState state = optimizer->state_to_save();
  CopiedState copied;
  comm::rethrow_on_all_ranks(host_, [&] {
    copied = copy_state(tensors_to_write(contents, *optimizer, state, host_.rank(), host_.size()),
                        writer_->take_memory());
    copied.manifest = manifest_of(contents, *optimizer, state, host_.size());
    checkpoint::format_manifest(
        copied.manifest);  // refuses values that it cannot hold here, and not in the writer
    copied.model_metadata = contents.model_metadata;
    for (const auto& [name, bytes] : contents.companions) {
      checkpoint::require_companion(name, std::ssize(bytes));
      if (host_.rank() == 0) copied.companions.emplace(name, bytes);
    }
  });
  writer_->start(std::move(copied));
  return SaveStart::started;
}

void Checkpointer::refuse(int64_t job_step) {
  writer_->tell(SaveRefused{job_step});
  const std::optional<int64_t> under_way =
      status().under_way;  // none: another rank is a little later
  if (!under_way || under_way == said_to_be_under_way_) return;
  said_to_be_under_way_ = under_way;
  writer_->say("no checkpoint of step " + std::to_string(job_step) +
               " is saved now: that of step " + std::to_string(*under_way) +
               " is still being written");
}

bool Checkpointer::wait(const std::function<bool()>& gives_up) {
  return writer_->wait(gives_up);
}

Checkpointer::Status Checkpointer::status() const {
  return writer_->status();
}

// Rank 0 looks, so that all ranks speak of the same folders.
std::vector<std::filesystem::path> Checkpointer::candidates(const LoadOptions& options) const {
  std::vector<std::string> found;
  if (host_.rank() == 0) {
    std::filesystem::path root = options_.folder;
    if (!options.path.empty()) {
      const std::filesystem::path inside = options.path / run_folder::kCheckpointsName;
      root = std::filesystem::is_directory(inside) ? inside : options.path;
    }
    const checkpoint::CheckpointFolder folder(root);
    if (std::filesystem::exists(root / checkpoint::kManifestName)) {
      found.push_back(root.string());
    } else if (options.job_step) {
      found.push_back(folder.path_of(*options.job_step).string());
    } else {
      for (const int64_t step : folder.steps()) found.push_back(folder.path_of(step).string());
    }
  }
  // What was asked for by name and is not there is refused by the reader; where the newest is asked for there may be none.
  if (found.empty() && !options.path.empty()) found.push_back(options.path.string());
  std::vector<std::filesystem::path> paths;
  for (const std::string& path : comm::broadcast_texts(host_, found, 0)) paths.emplace_back(path);
  return paths;
}

std::optional<Loaded> Checkpointer::load(const CheckpointContents& contents,
                                         const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  Loaded loaded;
  std::optional<CheckpointReader> reader;
  const std::vector<std::filesystem::path> paths = candidates(options);
  for (size_t i = 0; i < paths.size() && !reader; ++i) {
    try {
      comm::rethrow_on_all_ranks(host_, [&] {
        reader.emplace(paths[i]);
        reader->verify(host_.rank(), host_.size());
      });
    } catch (const DataError& error) {
      reader.reset();
      const bool has_older = i + 1 < paths.size();
      if (options.fallback && has_older) {
        loaded.damaged.emplace_back(error.what());
        continue;
      }
      throw DataError(std::string(error.what()) +
                      (has_older ? "; --fallback takes the newest one that is whole" : ""));
    }
  }
  if (!reader) return std::nullopt;
  const std::unique_ptr<OptimizerAccess> optimizer = snapshot::open_optimizer(contents);
  std::optional<Loading> loading;
  OptimizerAccess::ReplicatedState state;
  comm::rethrow_on_all_ranks(host_, [&] {
    if (options.judge) options.judge(reader->manifest().values, reader->folder());
    loading.emplace(*reader, contents, *optimizer);
    FUSEDBUN_REQUIRE(loading->differences().empty() || options.partial, DataError,
                     reader->folder().string() +
                         " does not fit: " + snapshot::listed(loading->differences()) +
                         "; --load-partial takes what fits");
    state = loading->state();
    if (!options.path.empty()) {
      state.changes = {.overrides = state.changes.overrides,
                       .active_revision = 0,
                       .known_revision = 0,
                       .chain_hash = 0,
                       .scheduled = {}};
    }
  });
  const std::string manifest = checkpoint::format_manifest(reader->manifest());
  comm::verify_equal_across_ranks(
      host_,
      std::vector<std::string>{"manifest " +
                               to_hex(checkpoint::digest_of(std::as_bytes(std::span(manifest))))},
      "the ranks read different checkpoints: the folder must be the same for all of them");
  optimizer->restore(state,
                     [&](const OptimizerAccess::OwnedRows& rows) { loading->read_rows(rows); });
  comm::rethrow_on_all_ranks(host_, [&] { loading->read_beside(); });
  loaded.job_step = reader->manifest().job_step;
  loaded.folder = reader->folder();
  loaded.world_size = reader->manifest().world_size;
  loaded.values = reader->manifest().values;
  loaded.left_out = loading->differences();
  writer_->note_loaded(loaded.job_step, options.path.empty());
  return loaded;
}

}  // namespace fusedbun
