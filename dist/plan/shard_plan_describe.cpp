// ShardPlan in words: the table a person would draw, and the advice that follows from it.
#include <algorithm>
#include <iomanip>
#include <sstream>

#include "fusedbun/dist/plan/load_forecast.h"
#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {
namespace {

/// Above this the planner speaks up: the busiest rank owns that much more than the average.
constexpr double kImbalanceLimit = 0.02;

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

std::string percent(double fraction) {
  return fixed(100 * fraction, 1) + " %";
}

std::string counted(size_t count, const std::string& noun) {
  return std::to_string(count) + ' ' + noun + (count == 1 ? "" : "s");
}

/// "rank 3" or "ranks 0-3".
std::string ranks(int first, int last) {
  if (first == last) return "rank " + std::to_string(first);
  return "ranks " + std::to_string(first) + "-" + std::to_string(last);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t dimension = 0; dimension < shape.size(); ++dimension) {
    text += (dimension ? ", " : "") + std::to_string(shape[dimension]);
  }
  return text + "]";
}

/// The largest smaller world, and the largest smaller min_rows_per_rank, that keep the limit.
std::string proposal(const ShardPlan& plan) {
  std::string text;
  PlanOptions options = plan.options;
  LoadForecast forecast(plan.parameters, options.bucket_bytes);
  while (--options.world_size >= 2) {
    const double other = imbalance_of(forecast.loads(options));
    if (other > kImbalanceLimit) continue;
    text +=
        "; " + std::to_string(options.world_size) + " ranks would be uneven by " + percent(other);
    break;
  }
  options = plan.options;
  while ((options.min_rows_per_rank /= 2) >= 1) {
    const double other = imbalance_of(forecast.loads(options));
    if (other > kImbalanceLimit) continue;
    text += "; min_rows_per_rank " + std::to_string(options.min_rows_per_rank) +
            " would be uneven by " + percent(other);
    break;
  }
  return text.empty() ? "; no smaller world or min_rows_per_rank is within 2 %" : text;
}

/// First and last rank that own rows of `parameter`, and the first's range.
struct Owners {
  int first = -1, last = -1;
  RowRange range;
};

Owners owners_of(const ShardPlan& plan, int parameter) {
  Owners owners;
  const BucketRange& buckets = plan.buckets_of[parameter];
  const auto segment_in = [&](int bucket, int rank) {
    const std::vector<Segment>& segments = plan.buckets[bucket].segments[rank];
    const auto found = std::ranges::find(segments, parameter, &Segment::parameter);
    return found == segments.end() ? nullptr : &*found;
  };
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    const Segment* first = segment_in(buckets.begin, rank);
    if (first == nullptr) continue;
    if (owners.first < 0) {
      owners.first = rank;
      owners.range = first->range;
      owners.range.row_end = segment_in(buckets.end - 1, rank)->range.row_end;
    }
    owners.last = rank;
  }
  return owners;
}

std::string split_text(const ShardPlan& plan, const RowRange& first) {
  const int world_size = plan.options.world_size;
  const int longer = static_cast<int>(first.rows_total % world_size);
  std::string text =
      std::to_string(first.rows()) + " rows on " + ranks(0, (longer ? longer : world_size) - 1);
  if (longer)
    text += ", " + std::to_string(first.rows() - 1) + " on " + ranks(longer, world_size - 1);
  return text;
}

/// "2 matrices on ranks 0-3 (8 matrices of 512 rows, never cut)"
std::string stack_text(const ShardPlan& plan, int parameter) {
  const RowRange all = plan.parameters[parameter].all_rows();
  const int world_size = plan.options.world_size;
  const int64_t each = all.matrices() / world_size, longer = all.matrices() % world_size;
  const auto some = [](int64_t count) {
    return count == 1 ? std::string("1 matrix") : std::to_string(count) + " matrices";
  };
  const std::string many =
      " (" + some(all.matrices()) + " of " + std::to_string(all.matrix_rows) + " rows, ";
  if (each == 0) {
    const Owners owners = owners_of(plan, parameter);
    return "1 matrix each on the least loaded of " + ranks(owners.first, owners.last) + many +
           "fewer than ranks)";
  }
  std::string text = some(each + (longer > 0)) + " on " +
                     ranks(0, static_cast<int>(longer > 0 ? longer : world_size) - 1);
  if (longer > 0) {
    text += ", " + some(each) + " on " + ranks(static_cast<int>(longer), world_size - 1);
  }
  return text + many + "never cut)";
}

/// "split  192 rows on ranks 0-3 (768 rows >= 4 x 4)"
std::string slice_text(const ShardPlan& plan, int parameter) {
  const Owners owners = owners_of(plan, parameter);
  const std::string limit = std::to_string(plan.options.min_rows_per_rank) + " x " +
                            std::to_string(plan.options.world_size) + ")";
  const std::string rows = std::to_string(owners.range.rows_total) + " rows ";
  switch (plan.slices[parameter]) {
    case SliceKind::row_sharded:
      return "split  " + split_text(plan, owners.range) + " (" + rows + ">= " + limit;
    case SliceKind::single_owner:
      return "whole  " + ranks(owners.first, owners.last) + ", the least loaded (" + rows + "< " +
             limit;
    case SliceKind::stacked:
      return "stack  " + stack_text(plan, parameter);
    case SliceKind::flattened:
      return "pack   " + ranks(owners.first, owners.last) + " (a vector is cut anywhere)";
  }
  return {};
}

/// What of a parameter travels in a bucket: "split  192 rows on ranks 0-3 (768 rows >= 4 x 4)", and of a spread one which part.
std::string bucket_text(const ShardPlan& plan, int parameter, int bucket) {
  const BucketRange& buckets = plan.buckets_of[parameter];
  if (buckets.size() == 1) return slice_text(plan, parameter);
  const std::string part = "part " + std::to_string(bucket - buckets.begin + 1) + " of " +
                           std::to_string(buckets.size());
  if (bucket > buckets.begin) return part;
  return slice_text(plan, parameter) + ", " + part + " of every rank's rows";
}

void describe_bucket(std::ostream& out, const ShardPlan& plan, int index, size_t name_width,
                     size_t shape_width) {
  const Bucket& bucket = plan.buckets[index];
  const auto [least, most] = std::ranges::minmax(bucket.counts);
  const double bytes = static_cast<double>(bucket.elements() * arithmetic_bytes_of(bucket.type));
  out << "\nbucket " << index << ": " << name_of(bucket.type) << ", " << bucket.elements()
      << " elements, " << fixed(bytes / (1 << 20), 1) << " MiB of gradients, per rank " << least;
  if (least != most) out << " to " << most;
  out << '\n';
  for (int parameter : bucket.parameters) {
    const ParameterSpec& spec = plan.parameters[parameter];
    out << "  " << std::left << std::setw(static_cast<int>(name_width)) << spec.name << "  "
        << std::setw(static_cast<int>(shape_width)) << shape_text(spec.shape) << "  group "
        << spec.group << "  " << bucket_text(plan, parameter, index) << '\n';
  }
}

/// One line per run of ranks that own equally much.
void describe_loads(std::ostream& out, const ShardPlan& plan) {
  int64_t total = 0;
  for (int64_t load : plan.load) total += load;
  const double average = static_cast<double>(total) / plan.options.world_size;
  out << "\nelements owned\n";
  for (size_t first = 0, next; first < plan.load.size(); first = next) {
    next = first + 1;
    while (next < plan.load.size() && plan.load[next] == plan.load[first]) ++next;
    const double over = total == 0 ? 0 : static_cast<double>(plan.load[first]) / average - 1;
    out << "  " << ranks(static_cast<int>(first), static_cast<int>(next) - 1) << ": "
        << plan.load[first] << " (" << (over < 0 ? "" : "+") << fixed(100 * over, 3)
        << " % against the average)\n";
  }
}

}  // namespace

std::string line_of(const ParameterSpec& parameter) {
  return parameter.name + " " + shape_text(parameter.shape) + " " +
         std::string(name_of(parameter.type)) + " group " + std::to_string(parameter.group) +
         (parameter.stacked_matrices() > 0 ? " last_two" : "");
}

std::optional<std::string> matrix_view_advice(std::span<const ParameterSpec> parameters) {
  // Convolution weights stay out: their last two dimensions are small.
  constexpr int64_t kMatrixSide = 32, kRowsPerColumn = 16;
  const ParameterSpec* first = nullptr;
  size_t count = 0;
  for (const ParameterSpec& parameter : parameters) {
    const auto& shape = parameter.shape;
    if (shape.size() < 3 || parameter.matrix_view != MatrixView::leading) continue;
    const bool are_matrices =
        shape[shape.size() - 1] >= kMatrixSide && shape[shape.size() - 2] >= kMatrixSide;
    if (!are_matrices || parameter.columns() / kRowsPerColumn < parameter.rows()) continue;
    if (count++ == 0) first = &parameter;
  }
  if (count == 0) return std::nullopt;
  return counted(count, "parameter") + " such as " + first->name + " " + shape_text(first->shape) +
         (count == 1 ? " looks like a stack" : " look like stacks") +
         " of matrices, seen as one of " + std::to_string(first->rows()) + " rows and " +
         std::to_string(first->columns()) +
         " columns: matrix_view = last_two in a group of their own gives each matrix statistics of "
         "its own";
}

std::optional<std::string> ShardPlan::warning() const {
  const double uneven = imbalance_of(load);
  if (uneven <= kImbalanceLimit) return std::nullopt;
  const auto busiest = std::ranges::max_element(load) - load.begin();
  return "rank " + std::to_string(busiest) + " owns " + percent(uneven) +
         " more elements than the average of " + std::to_string(options.world_size) + " ranks" +
         proposal(*this);
}

std::string ShardPlan::describe() const {
  std::ostringstream out;
  int64_t elements = 0;
  size_t name_width = 0, shape_width = 0;
  for (const ParameterSpec& parameter : parameters) {
    elements += parameter.elements();
    name_width = std::max(name_width, parameter.name.size());
    shape_width = std::max(shape_width, shape_text(parameter.shape).size());
  }
  out << counted(parameters.size(), "parameter") << ", " << elements << " elements, "
      << counted(load.size(), "rank") << ", " << counted(buckets.size(), "bucket") << " closed at "
      << fixed(static_cast<double>(options.bucket_bytes) / (1 << 20), 1) << " MiB\n";
  for (size_t b = 0; b < buckets.size(); ++b) {
    describe_bucket(out, *this, static_cast<int>(b), name_width, shape_width);
  }
  for (size_t p = 0; p < parameters.size(); ++p) {
    if (buckets_of[p].empty())
      out << "\nin no slice (no elements): " << line_of(parameters[p]) << '\n';
  }
  describe_loads(out, *this);
  if (const auto uneven = warning()) out << "warning: " << *uneven << '\n';
  return out.str();
}

}  // namespace fusedbun::plan
