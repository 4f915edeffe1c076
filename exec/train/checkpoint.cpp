#include "dualpipe/exec/train/checkpoint.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/train/exchange.h"
#include "dualpipe/exec/train/settings.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/report/output_file.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::train {

using detail::schedule::quote;

namespace {

constexpr auto format_key = "format";
constexpr auto format_name = "dualpipe-training";
constexpr auto version_key = "version";
constexpr std::int64_t version = 2;  // 1 had no checksums
constexpr auto steps_key = "steps";
constexpr auto data_key = "data";
constexpr auto dtype_key = "dtype";  // of the parameters: those of a training in bfloat16 are float32
constexpr auto synthetic = "synthetic";
constexpr std::string_view optimizer_prefix = "optimizer.";

// What two trainings must have in common: the name of the option, and its value.
using Field = std::pair<std::string, std::string>;

// Of experts only where the model has some; a checkpoint of any model has all others.
void add_settings(std::vector<Field>& fields, const TrainOptions& options, Setting::Saved saved) {
  for (const Setting& setting : train_settings()) {
    if (setting.saved != saved) continue;
    if (setting.heeded_with == ModelFeature::experts && !has(options.shape.model, ModelFeature::experts)) continue;
    fields.emplace_back(setting.name, setting.text(options));
  }
}

std::vector<Field> fields_of(const Schedule& schedule, const TrainOptions& options, Data& data) {
  const ModelShape& shape = options.shape;
  const auto layers = std::accumulate(shape.layers.begin(), shape.layers.end(), std::int64_t{0});
  std::vector<Field> fields = {{"model", shape.model},
                               {"layers", std::to_string(layers)},
                               {dtype_key, shape.precision == Precision::float64 ? "float64" : "float32"}};
  add_settings(fields, options, Setting::Saved::model);
  if (options.forward_only) return fields;
  add_settings(fields, options, Setting::Saved::training);
  fields.emplace_back("microbatches", std::to_string(schedule.total_micro_batches()));
  fields.emplace_back(data_key, data.description());
  if (fields.back().second == synthetic) fields.emplace_back("seed", std::to_string(shape.seed));
  return fields;
}

const std::string& value_of(const std::string& path, const SafeTensors& contents, const std::string& key) {
  const auto found = contents.metadata.find(key);
  if (found != contents.metadata.end()) return found->second;
  refuse(path, fmt::format("its metadata lack {}; give a file that --save wrote", quote(key)));
}

void check_format(const std::string& path, const SafeTensors& contents) {
  const auto format = contents.metadata.find(format_key);
  if (format == contents.metadata.end() || format->second != format_name) {
    refuse(path, "is a safetensors file, but of no training; give one that --save wrote");
  }
  const std::string& number = value_of(path, contents, version_key);
  if (number != std::to_string(version)) {
    refuse(path, fmt::format("made by another version: its format is {}, this one reads {}", quote(number), version));
  }
  if (contents.checksum.empty()) {
    refuse(path,
           "has no checksum where --save writes it: it was damaged, or another tool has written it; give a file "
           "that --save wrote");
  }
}

void check_field(const std::string& path, const SafeTensors& contents, const Field& field) {
  const auto& [key, own] = field;
  const std::string& saved = value_of(path, contents, key);
  if (saved == own) return;
  if (key == dtype_key) {
    refuse(path, fmt::format("its parameters are {}, but this run's are {}; use --dtype {}, or leave --resume out",
                             saved, own, saved == "float64" ? "float64" : "float32 or bfloat16"));
  }
  if (key != data_key) {
    refuse(path,
           fmt::format("was saved with --{0} {1}, but this run has {2}; give the same --{0}, or leave --resume out",
                       key, quote(saved), quote(own)));
  }
  refuse(path, fmt::format("was trained on other data ({}, and not {}); {}, or leave --resume out", quote(saved),
                           quote(own), saved == synthetic ? "leave --data out" : "give the same file to --data"));
}

int steps_of(const std::string& path, const SafeTensors& contents, const TrainOptions& options) {
  const std::string& text = value_of(path, contents, steps_key);
  const std::int64_t most =
      std::numeric_limits<int>::max() - std::int64_t{options.warmup} - std::int64_t{options.steps};
  try {
    return static_cast<int>(parse_integer(text, 0, most));
  } catch (const InputError& error) {
    refuse(path, fmt::format("its number of steps: {}", error.what()));
  }
}

// A name means one parameter, whichever chain holds it.
void check_chains(const Placement& placement) {
  for (int stage = 0; stage < placement.stages(); ++stage) {
    const auto begin =
        static_cast<std::size_t>(placement.chain_begin[static_cast<std::size_t>(placement.chain_of(stage))]);
    const auto number = static_cast<std::size_t>(stage);
    if (placement.weights_of[number] == placement.weights_of[number - begin]) continue;
    throw InputError(fmt::format(
        "stage {} has not the weights of stage {}, its counterpart in the first chain: the schedule trains two models, "
        "and --save and --resume know one; have them share their weights",
        number, number - begin));
  }
}

// All that is saved of some stages. What the optimizer has of each parameter is there from its first step on.
std::vector<NamedTensor> tensors_of(const StageSet& stages, const Optimizer& optimizer) {
  const std::vector<NamedTensor> parameters = stages.named_parameters();
  std::vector<NamedTensor> all = parameters;
  const std::vector<std::vector<NamedTensor>> state = optimizer.state();
  for (std::size_t i = 0; i < state.size(); ++i) {
    for (const NamedTensor& each : state[i]) {
      all.push_back({fmt::format("{}{}.{}", optimizer_prefix, each.name, parameters[i].name), each.tensor});
    }
  }
  return all;
}

// What a tensor of this shape and type gets, once it is known to be what was saved, and finite. (A copy: the bytes may
// lie anywhere, also where no number may, and the file may change under our eyes.)
at::Tensor checked_values(const std::string& path, const std::string& name, TensorView saved, at::IntArrayRef sizes) {
  const at::Tensor values = at::empty(sizes, saved.dtype);
  if (!saved.data.empty()) std::memcpy(values.mutable_data_ptr(), saved.data.data(), saved.data.size());
  saved.data = std::span(static_cast<const std::byte*>(values.const_data_ptr()), saved.data.size());
  if (!is_sound(saved)) {
    refuse(path,
           fmt::format("was damaged: the data of tensor {} do not have its checksum; use another copy of the file",
                       quote(name)));
  }
  if (const std::string where = not_finite_in(saved); !where.empty()) {
    refuse(path, fmt::format("tensor {} has {}: the training had broken down when it was saved; give an earlier save",
                             quote(name), where));
  }
  return values;
}

std::string text_of(const TensorView& view) {
  return fmt::format("{}[{}]", c10::toString(view.dtype), fmt::join(view.shape, ","));
}

}  // namespace

Checkpoint::Checkpoint(const Schedule& schedule, const TrainOptions& options, Data& data)
    : path_(options.resume),
      file_(path_, "a training that --save wrote"),
      contents_(read_safetensors(file_.bytes(), path_)),
      parameters_only_(options.forward_only) {
  check_chains(schedule.placement);
  check_format(path_, contents_);
  for (const Field& field : fields_of(schedule, options, data)) check_field(path_, contents_, field);
  steps_ = steps_of(path_, contents_, options);
}

std::string Checkpoint::description() const { return fmt::format("{} steps, checksum {}", steps_, contents_.checksum); }

std::vector<std::string> Checkpoint::load(const StageSet& stages, Optimizer& optimizer) const {
  optimizer.begin_at(steps_);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_of(stages, optimizer)) {
    const auto found = contents_.tensors.find(name);
    if (found == contents_.tensors.end()) {
      refuse(path_, fmt::format("lacks tensor {}, which this model has; give the file of the same model", quote(name)));
    }
    const TensorView& saved = found->second;
    const TensorView own{tensor.scalar_type(), tensor.sizes().vec(), {}, {}, {}};
    if (saved.dtype != own.dtype || saved.shape != own.shape) {
      refuse(path_, fmt::format("tensor {} is {}, and this model's is {}; give the file of the same model", quote(name),
                                text_of(saved), text_of(own)));
    }
    const c10::NoGradGuard no_gradients;
    tensor.copy_(checked_values(path_, name, saved, tensor.sizes()));
    names.push_back(name);
  }
  return names;
}

void Checkpoint::check_complete(const std::vector<std::string>& loaded) const {
  const std::set<std::string_view> known(loaded.begin(), loaded.end());
  for (const auto& [name, tensor] : contents_.tensors) {
    if (known.contains(name) || (parameters_only_ && name.starts_with(optimizer_prefix))) continue;
    refuse(path_, fmt::format("has tensor {}, which this model has not; give the file of the same model", quote(name)));
  }
}

bool is_save_due(const TrainOptions& options, int steps_done, int last) {
  if (options.save.empty()) return false;
  return steps_done == last || (options.save_every > 0 && steps_done % options.save_every == 0);
}

Saving::Saving(World& world, const Schedule& schedule, const TrainOptions& options, Data& data)
    : world_(world), options_(options), taken_(static_cast<std::size_t>(schedule.ranks())) {
  if (options.save.empty() || world.process() != 0) return;
  check_chains(schedule.placement);
  check_output_file(options.save);
  for (const auto& [key, value] : fields_of(schedule, options, data)) metadata_[key] = value;
  metadata_[format_key] = format_name;
  metadata_[version_key] = std::to_string(version);
}

void Saving::take(int rank, const StageSet& stages, const Optimizer& optimizer, int steps_done) {
  SafeTensors& contents = taken_[static_cast<std::size_t>(rank)];
  contents = {};
  for (const auto& [name, tensor] : tensors_of(stages, optimizer)) {
    const auto [place, is_new] = contents.tensors.try_emplace(name);
    if (!is_new) continue;
    place->second = view_of(tensor);
    const std::string where = not_finite_in(place->second);
    if (where.empty()) continue;
    throw ReplayError(fmt::format(
        "rank {}: tensor {} has {} after step {}, so that {} was not saved again; a lower --learning-rate or "
        "a --clip may help",
        rank, quote(name), where, steps_done - 1, options_.save));
  }
}

void Saving::write(int steps_done) {
  SafeTensors contents;
  for (SafeTensors& each : taken_) contents.tensors.merge(std::exchange(each, {}).tensors);
  const std::vector<std::string> bytes = add_others(world_, contents);  // which the contents now refer to
  const std::function<void()> save = [&] {
    contents.metadata = metadata_;
    contents.metadata[steps_key] = std::to_string(steps_done);
    write_output_file(
        options_.save, [&](std::ostream& out) { write_safetensors(out, contents); }, Durable::yes);
  };
  if (world_.processes() == 1) return save();
  work_while_others_wait(world_, fmt::format("the save after step {}", steps_done), options_.transport.timeout,
                         world_.process() == 0 ? save : nullptr);
}

}  // namespace dualpipe::detail::train
