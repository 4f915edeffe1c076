#include "trace_files.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/schedule_file.h"

namespace dualpipe {
namespace {

constexpr std::array<std::pair<std::string_view, TraceFormat>, 4> formats{{{"dualpipe", TraceFormat::dualpipe},
                                                                           {"kineto", TraceFormat::kineto},
                                                                           {"primus", TraceFormat::primus},
                                                                           {"pytorch", TraceFormat::pytorch}}};

// What the order of a run is compared with, or where its ops are found by.
std::optional<Schedule> given_schedule(const std::string& path) {
  if (path.empty()) return std::nullopt;
  const auto loaded = load_schedule(path);
  return value_of("--schedule", path, [&](const std::string&) { return lower_valid(loaded).schedule; });
}

int chunks_of(const std::string& chunks, TraceFormat format) {
  if (chunks.empty()) return 1;
  if (format != TraceFormat::primus) {
    throw CLI::ValidationError("--chunks", "of traces, Primus' alone do not say it; leave it out");
  }
  const auto number = [](std::string_view text) { return static_cast<int>(parse_integer(text, 1, stage_count_max)); };
  return value_of("--chunks", chunks, number);
}

}  // namespace

bool is_trace(std::string_view begin) {
  const auto first = begin.find_first_not_of(" \t\r\n\xef\xbb\xbf");
  if (first == begin.npos) return true;  // whoever reads it says so
  const char c = begin[first];
  return (c == '{' && begin.find("dualpipe-schedule") == begin.npos) || c == '[' || c == '\x1f';
}

bool is_trace_file(const std::string& path) {
  std::error_code error;
  if (path == "-" || !std::filesystem::is_regular_file(path, error)) return false;
  auto in = open_input_file(path);
  std::string begin(4096, '\0');
  in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  begin.resize(static_cast<std::size_t>(in.gcount()));
  return is_trace(begin);
}

std::string chunks_given(const ShapeOptions& shape) {
  for (std::size_t i = 0; i < shape.values.size(); ++i) {
    if (parameters()[i].value == &Shape::chunks) return shape.values[i];
  }
  return "";
}

void TraceOptions::add_to(CLI::App& app) {
  constexpr auto group = "Traces";
  add_choice(app, "--format", format, {"auto", "dualpipe", "kineto", "primus", "pytorch"},
             "Whose they are. kineto: torch.profiler's; primus: pp_rank_N.json; pytorch: its simulator's dump")
      ->group(group);
  app.add_option("--step", step, "Of several: ProfilerStep's number, or counted from 0 (the one of median length)")
      ->type_name("N")
      ->group(group);
  app.add_option(
         "--range", range,
         "What the ranges around ops are called, as an ECMAScript pattern with groups for pass, micro-batch and, "
         "where a rank has several, stage; or for pass alone, with --schedule")
      ->type_name("REGEX")
      ->group(group);
  app.add_option("--schedule", schedule,
                 "What ran, as a CSV or JSON file: says which ops they are where ranges do not, and checks the others")
      ->type_name("FILE")
      ->group(group);
}

std::string TraceOptions::given() const {
  if (format != "auto") return "--format";
  if (!step.empty()) return "--step";
  if (!range.empty()) return "--range";
  return schedule.empty() ? "" : "--schedule";
}

TraceFormat TraceOptions::kind() const {
  const auto* const found = std::ranges::find(formats, format, &decltype(formats)::value_type::first);
  return found != formats.end() ? found->second : format_of_trace(files[0]);
}

TraceOptions::Loaded TraceOptions::load() const {
  const TraceFormat of = kind();
  const auto order = given_schedule(schedule);
  ForeignOptions options;
  options.chunks = chunks_of(chunks, of);
  options.range = range;
  options.schedule = order ? &*order : nullptr;
  if (!step.empty()) {
    options.step = value_of("--step", step, [](std::string_view text) { return parse_integer(text, 0, INT64_MAX); });
  }
  ForeignRun run = load_foreign_traces(files, of, options);
  MeasuredRun measured =
      measured_run(run.run, std::filesystem::path(files[0]).filename().string(), std::move(run.program));
  if (!run.messages.empty() && !add_messages(measured, run.messages)) {
    run.remarks.emplace_back(
        "the messages that were recorded are not those of this order: when each came is not known");
    run.messages.clear();
  }
  return {std::move(measured), std::move(run.messages), run.clock_width, std::move(run.remarks)};
}

}  // namespace dualpipe
