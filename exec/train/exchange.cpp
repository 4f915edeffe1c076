#include "dualpipe/exec/train/exchange.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <future>
#include <span>
#include <sstream>
#include <utility>

#include "dualpipe/exec/train/settings.h"
#include "dualpipe/sim/schedule/fingerprint.h"

namespace dualpipe::detail::train {

using detail::transport::Packer;
using detail::transport::Unpacker;

namespace {

std::string hexadecimal(std::uint64_t fingerprint) { return fmt::format("{:016x}", fingerprint); }

std::uint64_t fingerprint_of(const Costs& costs) {
  Fingerprint result;
  for (const StageCosts& each : costs.stages) {
    for (const Time time : {each.forward, each.backward, each.input_gradient, each.weight_gradient, each.recompute,
                            each.overlapped.value_or(-1)}) {
      result.add(time);
    }
  }
  result.add(costs.speed);
  return result.value();
}

std::string text_of(const Faults& faults, std::span<const LinkDelay> links) {
  std::string text;
  for (const auto& each : faults.ranks) text += fmt::format("rank:{}:{} ", each.rank, each.factor);
  for (const auto& each : faults.ops) text += fmt::format("op:{}:{} ns ", to_text(each.op), each.by);
  for (const auto& each : links) {
    text += fmt::format("link:{}-{}:{} ns ", each.from, each.to, each.delay.count());
  }
  return text;
}

// A name for people, and the value.
using Line = std::pair<std::string, std::string>;

std::vector<Line> lines_of(const Program& program, const TrainOptions& options) {
  const ModelShape& shape = options.shape;
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  std::vector<Line> lines = {
      {"--schedule", program.schedule.name},
      {"--ranks", text(program.schedule.ranks())},
      {"--microbatches", text(program.schedule.total_micro_batches())},
      {"the ops of the schedule (where it is a file, what stands in it), hash", hexadecimal(fingerprint(program))},
      {"--model", shape.model},
      {"--layers", fmt::format("{}", fmt::join(shape.layers, ","))},
      {"the durations of the ops (with --costs, what stands in the file), hash",
       hexadecimal(fingerprint_of(shape.costs))},
      {"passes measured apart", text(options.measure_passes)},
      {"--calibrate", options.measure_links ? "on" : "off"},
      {"--link-delay", fmt::format("{} ns", options.transport.link_delay.count())},
      {"--inject", text_of(options.faults, options.transport.slow_links)}};
  for (const Setting& setting : train_settings()) {
    // A process may compute with more threads, and have its files elsewhere, than the others.
    if (setting.group == Setting::Group::machine) continue;
    const std::string value = setting.text(options);
    const bool is_path = setting.type == "FILE";
    lines.emplace_back(fmt::format("--{}", setting.name), is_path ? (value.empty() ? "off" : "on") : value);
  }
  return lines;
}

}  // namespace

void check_same_run(World& world, const Program& program, const TrainOptions& options) {
  const std::vector<Line> lines = lines_of(program, options);
  Packer packer;
  for (const auto& [name, value] : lines) packer.put(value);
  std::vector<std::string> of_first(lines.size());
  gather(world, "the start of the training", packer.take(), [&](std::size_t process, Unpacker& values) {
    if (process == 0) {
      for (std::string& value : of_first) values.get(value);
      return;
    }
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const auto of_other = values.get<std::string>();
      if (of_first[i] == of_other) continue;
      throw InputError(
          fmt::format("process 0 and process {} were started with different command lines: {} is '{}' and '{}'",
                      process, lines[i].first, of_first[i], of_other));
    }
  });
}

void work_while_others_wait(World& world, const std::string& place, std::chrono::nanoseconds timeout,
                            const std::function<void()>& work) {
  std::future<void> working;
  if (work) working = std::async(std::launch::async, work);
  bool is_done = !work;
  const auto done = [](const std::string& state) { return state == "done"; };
  while (true) {
    if (!is_done && working.wait_for(timeout / 4) == std::future_status::ready) {
      working.get();
      is_done = true;
    }
    if (std::ranges::all_of(world.all_gather(place, is_done ? "done" : "at it"), done)) return;
  }
}

namespace {

// What a process finds.
struct Finding {
  bool is_error = false;
  std::string text;
};

Finding finding_of(const OpenedFile& file) {
  try {
    return {.text = file.open()};
  } catch (const InputError& error) {
    return {.is_error = true, .text = error.what()};
  }
}

// "ranks 0, 1: tokens: 512 tokens; rank 2: tokens: cannot be opened". `texts`: by process.
std::string by_ranks(const World& world, int ranks, const std::vector<std::string>& texts) {
  std::vector<std::pair<std::string, std::vector<int>>> found;  // and by which ranks
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string& text = texts[static_cast<std::size_t>(world.process_of(rank, ranks))];
    auto place = std::ranges::find(found, text, [](const auto& each) { return each.first; });
    if (place == found.end()) place = found.insert(found.end(), {text, {}});
    place->second.push_back(rank);
  }
  std::vector<std::string> parts;
  for (const auto& [text, by] : found) {
    parts.push_back(fmt::format("{} {}: {}", by.size() == 1 ? "rank" : "ranks", fmt::join(by, ", "), text));
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

}  // namespace

void open_same_file(World& world, int ranks, std::chrono::nanoseconds timeout, const OpenedFile& file) {
  if (world.processes() == 1) return static_cast<void>(file.open());
  Finding own;
  const std::string place = fmt::format("the file of {}", file.option);
  work_while_others_wait(world, place, timeout, [&] { own = finding_of(file); });
  Packer packer;
  packer.put(own.is_error);
  packer.put(own.text);
  packer.put(own.is_error ? own.text : fmt::format("{}: {}", file.path, own.text));
  bool is_error = false;
  std::vector<std::string> texts;
  std::vector<std::string> with_paths;
  gather(world, place, packer.take(), [&](std::size_t, Unpacker& finding) {
    is_error = finding.get<bool>() || is_error;
    finding.get(texts.emplace_back());
    finding.get(with_paths.emplace_back());
  });
  const bool is_same = std::ranges::count(texts, texts.front()) == std::ssize(texts);
  if (is_same && is_error) throw InputError(texts.front());
  if (is_same) return;
  throw InputError(fmt::format("{}: the processes do not find the same file; give them all the same. {}", file.option,
                               by_ranks(world, ranks, with_paths)));
}

std::vector<std::string> gather_names(World& world, const std::vector<std::string>& own) {
  if (world.processes() == 1) return own;
  Packer packer;
  for (const std::string& name : own) packer.put(name);
  std::vector<std::string> all;
  gather(world, "what was loaded", packer.take(), [&](std::size_t, Unpacker& names) {
    while (!names.at_end()) all.push_back(names.get<std::string>());
  });
  return all;
}

std::vector<std::string> add_others(World& world, SafeTensors& contents) {
  if (world.processes() == 1) return {};
  std::ostringstream own;
  write_safetensors(own, contents);
  std::vector<std::string> parts = world.all_gather("what is saved", own.str());
  for (std::size_t process = 0; process < parts.size(); ++process) {
    const auto bytes = std::as_bytes(std::span(parts[process]));
    contents.tensors.merge(read_safetensors(bytes, fmt::format("process {}", process)).tensors);
  }
  return parts;
}

}  // namespace dualpipe::detail::train
