#include "python/binding/sim/timeline.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/explain/explain.h"
#include "dualpipe/sim/report/compare.h"
#include "dualpipe/sim/report/explain_report.h"
#include "dualpipe/sim/report/gantt.h"
#include "dualpipe/sim/report/gantt_svg.h"
#include "dualpipe/sim/report/output_file.h"
#include "dualpipe/sim/report/run_report.h"
#include "dualpipe/sim/report/window.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "dualpipe/sim/trace/chrome_trace.h"
#include "python/binding/sim/arguments.h"
#include "python/binding/sim/costs.h"
#include "python/binding/sim/schedule.h"

namespace dualpipe::python {
namespace {

constexpr auto simulate_doc =
    R"(Runs a schedule as its costs say, and returns what happens when.

source        a name of the catalog, a CSV or JSON file, or a Schedule
memory_limit  of the peak of every rank: see schedule()
costs         Costs, or the path of a costs file; else the keywords of Costs

Without costs F takes 1 ms, B 2 ms, its half W 1 ms, and messages take no time. The same arguments give the same
result on any machine. Raises InputError for what cannot be taken, DeadlockError for a schedule that hangs.)";

// --- arrays

template <typename T, std::size_t dimensions>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<dimensions>, nb::device::cpu, nb::c_contig>;
template <typename T>
using View = nb::ndarray<nb::numpy, const T, nb::ndim<1>, nb::device::cpu>;
using Spans = nb::ndarray<nb::numpy, const Time, nb::shape<-1, 2>, nb::device::cpu>;

// One member of each item of a vector that `owner`, a Python object, holds: no copy.
template <typename T, typename Item>
View<T> view(nb::handle owner, const std::vector<Item>& items, T Item::*member) {
  static_assert(sizeof(Item) % sizeof(T) == 0);
  static_cast<void>(package("numpy"));
  static const Item none{};
  const Item* const first = items.empty() ? &none : items.data();
  return View<T>(&(first->*member), {items.size()}, owner, {static_cast<std::int64_t>(sizeof(Item) / sizeof(T))});
}

Spans view(nb::handle owner, const std::vector<Span>& spans) {
  static_assert(sizeof(Span) == 2 * sizeof(Time));
  static_cast<void>(package("numpy"));
  static const Span none;
  return Spans(spans.empty() ? &none.start : &spans.data()->start, {spans.size(), 2}, owner);
}

// What is computed for the array, which owns it.
template <typename T>
Array<T, 1> owned(std::vector<T> values) {
  static_cast<void>(package("numpy"));
  auto held = std::make_unique<std::vector<T>>(std::move(values));
  const nb::capsule owner(held.get(), [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
  std::vector<T>& data = *held.release();
  return Array<T, 1>(data.data(), {data.size()}, owner);
}

const TimelineValue& value_of_self(nb::handle self) { return nb::cast<const TimelineValue&>(self); }

// --- figures

std::vector<RankPeak> peaks_of(const TimelineValue& self) {
  if (!self.peaks.empty()) return self.peaks;
  std::vector<RankPeak> peaks;
  for (const RankMemory& memory : memory_of_ranks(self.program, self.costs)) {
    peaks.push_back({memory.peak_activations, memory.peak});
  }
  return peaks;
}

template <typename T>
Array<T, 1> peaks_array(const TimelineValue& self, T RankPeak::*member) {
  std::vector<T> values;
  for (const RankPeak& peak : peaks_of(self)) values.push_back(peak.*member);
  return owned(std::move(values));
}

Array<Time, 1> idle_of(const TimelineValue& self) {
  std::vector<Time> idle;
  for (int rank = 0; rank < self.program.schedule.ranks(); ++rank) idle.push_back(self.timeline.idle(rank));
  return owned(std::move(idle));
}

Array<std::int64_t, 1> rank_begin_of(const TimelineValue& self) {
  const auto& begin = self.program.schedule.rank_begin;
  return owned(std::vector<std::int64_t>(begin.begin(), begin.end()));
}

std::vector<int> ranks_of_ops(const TimelineValue& self) {
  std::vector<int> ranks;
  for (int rank = 0; rank < self.program.schedule.ranks(); ++rank) {
    ranks.insert(ranks.end(), self.program.schedule.rank(rank).size(), rank);
  }
  return ranks;
}

void check_rank(const TimelineValue& self, int rank) {
  const int ranks = self.program.schedule.ranks();
  if (rank >= 0 && rank < ranks) return;
  throw nb::index_error(("there is no rank " + std::to_string(rank) + ": 0 to " + std::to_string(ranks - 1)).c_str());
}

nb::tuple memory_over_time_of(const TimelineValue& self, int rank) {
  check_rank(self, rank);
  std::vector<MemoryPoint> points;
  {
    const nb::gil_scoped_release release;
    points = memory_over_time(self.program, self.costs, self.timeline, rank);
  }
  std::vector<Time> times;
  std::vector<Bytes> bytes;
  std::vector<int> activations;
  for (const MemoryPoint& point : points) {
    times.push_back(point.time);
    bytes.push_back(point.bytes);
    activations.push_back(point.activations);
  }
  return nb::make_tuple(owned(std::move(times)), owned(std::move(bytes)), owned(std::move(activations)));
}

nb::list texts_of_ops(const TimelineValue& self) {
  nb::list texts;
  for (const Op op : self.program.schedule.ops) texts.append(to_text(op));
  return texts;
}

nb::object to_pandas(nb::handle self) {
  const nb::module_ pandas = package("pandas");
  const TimelineValue& value = value_of_self(self);
  nb::dict columns;
  const auto add = [&](const char* column, const auto& array) {
    columns[column] = nb::cast(array, nb::rv_policy::automatic);
  };
  add("rank", owned(ranks_of_ops(value)));
  columns["op"] = texts_of_ops(value);
  nb::list kinds;
  for (const Op op : value.program.schedule.ops) kinds.append(name(op.kind));
  columns["kind"] = kinds;
  add("stage", view(self, value.program.schedule.ops, &Op::stage));
  add("micro_batch", view(self, value.program.schedule.ops, &Op::micro_batch));
  add("start_ns", view(self, value.timeline.ops, &Span::start));
  add("end_ns", view(self, value.timeline.ops, &Span::end));
  return pandas.attr("DataFrame")(columns);
}

// --- reports

RunReport report_of(const TimelineValue& self) {
  RunReport report = run_report(self.program, self.costs, self.timeline);
  report.remarks = self.remarks;
  return report;
}

std::string text_of(const TimelineValue& self, std::size_t width) {
  return to_text(report_of(self), {.width = width, .bytes = self.units});
}

// What was measured is explained by its spans, what was simulated by its costs.
std::string profile_of(const TimelineValue& self) {
  const bool is_measured = !self.peaks.empty();
  ExplainReport report = explain_report(
      self.program, is_measured ? std::nullopt : std::optional(self.costs), self.timeline,
      is_measured ? explain_measured(self.program, self.timeline) : explain(self.program, self.costs, self.timeline));
  report.remarks = self.remarks;
  return to_text(report, {.bytes = self.units});
}

std::string json_of(const TimelineValue& self) {
  return written([&](std::ostream& out) { write_json(out, report_of(self)); });
}

std::string svg_of(const TimelineValue& self, const SvgOptions& options) {
  return written([&](std::ostream& out) { write_gantt_svg(out, self.program, self.costs, self.timeline, options); });
}

std::string svg(const TimelineValue& self, int width, const std::string& title, nb::handle window, bool memory) {
  const SvgOptions options{.width = width, .title = title, .window = window_of(window), .memory = memory};
  if (width != 0 && (width < 400 || width > 10'000)) throw InputError("--svg-width: it is from 400 to 10000 pixels");
  const nb::gil_scoped_release release;
  return svg_of(self, options);
}

std::string gantt_text(const TimelineValue& self, int width, nb::handle window, bool color, bool letters) {
  const GanttOptions options{.width = width, .color = color, .letters = letters, .window = window_of(window)};
  const nb::gil_scoped_release release;
  return gantt(self.program, self.timeline, options);
}

void write_trace(const TimelineValue& self, nb::handle path, std::optional<std::pair<int, int>> ranks,
                 nb::handle window) {
  const std::string file = path_of(path);
  TraceFilter filter;
  if (ranks) {
    check_rank(self, ranks->first);
    check_rank(self, ranks->second);
    if (ranks->first > ranks->second) throw InputError("--trace-ranks: the first is behind the last");
    std::tie(filter.first_rank, filter.last_rank) = *ranks;
  }
  const auto part = window_of(window);
  const nb::gil_scoped_release release;
  if (part) {
    const Span span = dualpipe::window_of(self.timeline, *part);
    filter.begin = span.start;
    filter.end = span.end;
  }
  const TracedRun run{self.program, self.costs, self.timeline, "", self.peaks, self.devices};
  write_output_file(file, [&](std::ostream& out) { write_chrome_trace(out, std::span(&run, 1), filter); });
}

Comparison compare_with(const TimelineValue& self, const TimelineValue& other) {
  const auto run = [](const TimelineValue& value, std::string label) {
    return run_of(std::move(label), value.program, value.timeline, peaks_of(value));
  };
  if (self.peaks.empty() && !other.peaks.empty()) return compare(run(self, "planned"), run(other, "measured"));
  PlannedMeasured<std::string> names{self.program.schedule.name, other.program.schedule.name};
  if (names.planned == names.measured) names = {"A", "B"};
  return compare_schedules(run(self, names.planned), run(other, names.measured), names);
}

TimelineValue run_simulation(nb::handle source, nb::kwargs arguments) {
  const CostsValue costs = take_costs(arguments);
  const ScheduleOptions options = schedule_options(source, arguments);
  const nb::gil_scoped_release release;
  Planned plan = planned(options, costs.said, costs.given);
  TimelineValue value{std::move(plan.program), std::move(plan.costs), {}, in_python(std::move(plan.remarks))};
  value.units = costs.said.byte_units();
  value.timeline = simulate(value.program, value.costs);
  return value;
}

// --- classes

void bind_arrays(nb::class_<TimelineValue>& timeline) {
  const auto of_ranks = [](Time RankTimes::*member) {
    return [member](nb::handle self) { return view(self, value_of_self(self).timeline.ranks, member); };
  };
  constexpr auto of_array = nb::rv_policy::automatic;  // the array has an owner
  timeline
      .def_prop_ro("busy", of_ranks(&RankTimes::busy), of_array,
                   "int64 [ranks], ns: the sum of the durations of a rank's ops.")
      .def_prop_ro("first_start", of_ranks(&RankTimes::first_start), of_array, "int64 [ranks], ns: of its first op.")
      .def_prop_ro("last_end", of_ranks(&RankTimes::last_end), of_array, "int64 [ranks], ns: of its last op.")
      .def_prop_ro("idle", &idle_of, of_array, "int64 [ranks], ns: makespan - busy, DeepSeek's bubble of a rank.")
      .def_prop_ro(
          "spans", [](nb::handle self) { return view(self, value_of_self(self).timeline.ops); }, of_array,
          "int64 [ops, 2], ns: start and end of every op, rank after rank, in the order in which they run.\n"
          "Both ops of an F&B pair have the pair's. A view.")
      .def_prop_ro("rank_begin", &rank_begin_of, of_array,
                   "int64 [ranks + 1]: where a rank's ops begin in spans, and the end.")
      .def_prop_ro(
          "stage", [](nb::handle self) { return view(self, value_of_self(self).program.schedule.ops, &Op::stage); },
          of_array, "uint16 [ops]: the stage of every op. A view.")
      .def_prop_ro(
          "micro_batch",
          [](nb::handle self) { return view(self, value_of_self(self).program.schedule.ops, &Op::micro_batch); },
          of_array, "uint32 [ops]: the micro-batch of every op, within its chain. A view.")
      .def_prop_ro(
          "messages", [](nb::handle self) { return view(self, value_of_self(self).timeline.communication); }, of_array,
          "int64 [messages, 2], ns: from the start of the transfer to its arrival; a message has two, one at each\n"
          "end, and a reduction of gradients one. A view.")
      .def_prop_ro(
          "peak_memory", [](const TimelineValue& self) { return peaks_array(self, &RankPeak::memory); }, of_array,
          "int64 [ranks], bytes: what a rank holds at its peak.")
      .def_prop_ro(
          "peak_activations", [](const TimelineValue& self) { return peaks_array(self, &RankPeak::activations); },
          of_array, "int32 [ranks]: forwards whose B or I has not ended, at most, over all stages of a rank.")
      .def("memory", &memory_over_time_of, nb::arg("rank"),
           nb::sig("def memory(self, rank: int) -> tuple[numpy.typing.NDArray[numpy.int64], "
                   "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int32]]"),
           "Over time, a point wherever it changes: times in ns, bytes held, and activations alive.")
      .def_prop_ro("ops", &texts_of_ops, nb::sig("def ops(self) -> list[str]"), "The text of every op, as \"3B7\".")
      .def("to_pandas", &to_pandas, nb::sig("def to_pandas(self) -> typing.Any"),
           "A row per op: rank, op, kind, stage, micro_batch, start_ns, end_ns. Needs pandas.");
}

void bind_figures(nb::class_<TimelineValue>& timeline) {
  timeline
      .def_prop_ro(
          "name", [](const TimelineValue& self) { return self.program.schedule.name; }, "The schedule's.")
      .def_prop_ro(
          "schedule",
          [](const TimelineValue& self) {
            return ScheduleValue{self.program, self.remarks};
          },
          "What ran, with its communication.")
      .def_prop_ro(
          "costs",
          [](const TimelineValue& self) {
            return CostsValue{self.costs, {}};
          },
          "Of the stages of this schedule.")
      .def_prop_ro(
          "ranks", [](const TimelineValue& self) { return self.program.schedule.ranks(); }, "P.")
      .def_prop_ro(
          "is_measured", [](const TimelineValue& self) { return !self.peaks.empty(); },
          "Whether it is of a run, and not simulated.")
      .def_prop_ro(
          "makespan", [](const TimelineValue& self) { return self.timeline.makespan(); },
          "ns: the end of the last op minus the start of the first, over all ranks.")
      .def_prop_ro(
          "span", [](const TimelineValue& self) { return self.timeline.span(); },
          "ns: the longest first-op-to-last-op span of any one rank (the zero-bubble papers' cost).")
      .def_prop_ro(
          "reduced", [](const TimelineValue& self) { return self.timeline.reduced; },
          "ns: when the last reduction of gradients ended; 0 without any. Not part of the makespan.")
      .def_prop_ro(
          "bubble", [](const TimelineValue& self) { return self.timeline.bubble_rate_makespan(); },
          "The idle share of ranks x makespan (DeepSeek's).")
      .def_prop_ro(
          "bubble_by_span", [](const TimelineValue& self) { return self.timeline.bubble_rate_span(); },
          "The same with the span for the makespan (the zero-bubble papers', arXiv:2401.10241).")
      .def_prop_ro(
          "remarks", [](const TimelineValue& self) { return self.remarks; },
          "What must be known of how the schedule was read, or made.");
}

void bind_reports(nb::class_<TimelineValue>& timeline) {
  timeline
      .def("text", &text_of, nb::arg("width") = 0, nb::call_guard<nb::gil_scoped_release>(),
           "What dualpipe-sim simulate prints; in at most so many columns, which leaves out what matters least.")
      .def("__repr__", [](const TimelineValue& self) { return text_of(self, columns_of_terminal()); })
      .def("to_json", &json_of, nb::call_guard<nb::gil_scoped_release>(),
           "All figures, as dualpipe-sim simulate --json.")
      .def(
          "to_csv", [](const TimelineValue& self) { return to_csv(report_of(self)); },
          nb::call_guard<nb::gil_scoped_release>(), "A row per rank; times in ns.")
      .def(
          "to_dict", [](const TimelineValue& self) { return from_json(json_of(self)); },
          nb::sig("def to_dict(self) -> dict[str, typing.Any]"), "to_json() as Python's objects.")
      .def("profile", &profile_of, nb::call_guard<nb::gil_scoped_release>(),
           "Where the time of each rank went, and why it was idle, as dualpipe-sim explain says it: a text.")
      .def("gantt", &gantt_text, nb::arg("width") = 100, nb::arg("window") = nb::none(), nb::arg("color") = false,
           nb::arg("letters") = false,
           nb::sig(
               "def gantt(self, width: int = 100, window: tuple[str | float, str | float] | None = None, color: bool "
               "= False, letters: bool = False) -> str"),
           "A chart in text, of so many columns; of the time from window[0] to window[1] since the first op.")
      .def("svg", &svg, nb::arg("width") = 0, nb::arg("title") = "", nb::arg("window") = nb::none(),
           nb::arg("memory") = false,
           nb::sig(
               "def svg(self, width: int = 0, title: str = '', window: tuple[str | float, str | float] | None = None, "
               "memory: bool = False) -> str"),
           "A chart as a picture, a whole SVG file: so many pixels wide, or as wide as its ops need; with memory over\n"
           "time below each rank.")
      .def(
          "_repr_svg_", [](const TimelineValue& self) { return svg_of(self, {}); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("write_trace", &write_trace, nb::arg("path"), nb::arg("ranks") = nb::none(), nb::arg("window") = nb::none(),
           nb::sig("def write_trace(self, path: str | os.PathLike[str], ranks: tuple[int, int] | None = None, window: "
                   "tuple[str | float, str | float] | None = None) -> None"),
           "Writes a Chrome trace for https://ui.perfetto.dev: of all, or of the ranks from ranks[0] to ranks[1].")
      .def("compare", &compare_with, nb::arg("other"), nb::call_guard<nb::gil_scoped_release>(),
           "The difference to another run on as many ranks. Raises InputError where they cannot be compared.");
}

void bind_comparison(nb::module_& module) {
  const auto json = [](const Comparison& self) { return written([&](std::ostream& out) { write_json(out, self); }); };
  nb::class_<Comparison>(module, "Comparison", "Two runs, and how they differ: of Timeline.compare().")
      .def("__repr__", [](const Comparison& self) { return to_text(self); })
      .def("to_json", json, "All figures, as dualpipe-sim compare --json.")
      .def(
          "to_dict", [json](const Comparison& self) { return from_json(json(self)); },
          nb::sig("def to_dict(self) -> dict[str, typing.Any]"), "to_json() as Python's objects.");
}

}  // namespace

void bind_timeline(nb::module_& module) {
  nb::class_<TimelineValue> timeline(module, "Timeline",
                                     "What happened when a schedule ran, simulated or measured. Times are integer "
                                     "nanoseconds; arrays are NumPy's, read-only where they are views.");
  bind_comparison(module);
  bind_figures(timeline);
  bind_arrays(timeline);
  bind_reports(timeline);
  const std::string signature = std::string("def simulate(source: ") + path_type + " | Schedule, *, " +
                                schedule_signature() + ", " + costs_signature() + ") -> Timeline";
  module.def("simulate", &run_simulation, nb::arg("source"), nb::arg("keywords"), nb::sig(signature.c_str()),
             simulate_doc);
}

}  // namespace dualpipe::python
