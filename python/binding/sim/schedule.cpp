#include "python/binding/sim/schedule.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/closed_form.h"
#include "dualpipe/sim/report/title.h"
#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/json.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "python/binding/sim/arguments.h"
#include "python/binding/sim/costs.h"

namespace dualpipe::python {
namespace {

constexpr auto schedule_doc =
    R"(A schedule: what runs on which rank, in which order.

source        a name of the catalog, whose shape is to be given; or a CSV file (PyTorch's format) or JSON file (ours),
              which has its own
ranks         P, pipeline ranks
microbatches  M, over all chains, as DeepSeek counts them
chunks, group, waves, replicas   of the schedules that take them (catalog())
chains        of a CSV file: how many chains its stages are; 2 for DualPipe
letters       of a CSV file: what B is; "new": the full backward; "old": its input-gradient half
memory_limit  of the peak of every rank, "40GiB" or "12 microbatches": an automatic schedule keeps it, another one is
              refused where it does not

Costs, as of Costs, are for the automatic schedules, whose order depends on them, and for a memory limit.

Raises ShapeError for a shape that the schedule cannot have, InputError for anything else that cannot be taken. What is
read from a file is not checked yet: see validate().)";

std::string text_of_schedule(const ScheduleValue& self) { return title_text(title_of(self.schedule())); }

nb::list ops_of(const ScheduleValue& self) {
  nb::list ranks;
  for (int rank = 0; rank < self.schedule().ranks(); ++rank) {
    nb::list cells;
    auto ops = self.schedule().rank(rank);
    for (; !ops.empty(); ops = ops.subspan(unit_size(ops))) cells.append(cell_text(ops));
    ranks.append(cells);
  }
  return ranks;
}

nb::list chains_of(const Placement& placement) {
  nb::list chains;
  for (int chain = 0; chain < placement.chains(); ++chain) {
    nb::list ranks;
    const auto at = static_cast<std::size_t>(chain);
    for (std::size_t stage = placement.chain_begin[at]; stage < placement.chain_begin[at + 1]; ++stage) {
      ranks.append(placement.rank_of[stage]);
    }
    chains.append(ranks);
  }
  return chains;
}

std::vector<std::string> violations_of(const ScheduleValue& self) {
  std::vector<std::string> texts;
  const auto violations = std::visit([](const auto& each) { return validate(each); }, self.loaded);
  for (const Violation& each : violations) texts.push_back(to_text(each, self.schedule().placement));
  return texts;
}

std::optional<std::string> deadlock_of(const ScheduleValue& self, const std::string& comm) {
  CostOptions options;
  options.communication = comm;
  const CommunicationModel model = machine_of(options.costs()).model;
  const Program program = lower_valid(self.loaded, false, self.remarks);
  const auto deadlock = find_deadlock(program, model);
  return deadlock ? std::optional(to_text(*deadlock, program.schedule.placement)) : std::nullopt;
}

std::string csv_of(const ScheduleValue& self) {
  check_csv_can_hold(self.schedule().placement);
  return written([&](std::ostream& out) { std::visit([&](const auto& each) { write_csv(out, each); }, self.loaded); });
}

std::string json_of(const ScheduleValue& self) {
  return written([&](std::ostream& out) { std::visit([&](const auto& each) { write_json(out, each); }, self.loaded); });
}

ScheduleValue load(nb::handle source, nb::kwargs arguments) {
  const bool has_costs = arguments.contains("costs") && !arguments["costs"].is_none();
  const CostsValue costs = take_costs(arguments);
  const ScheduleOptions options = schedule_options(source, arguments);
  const nb::gil_scoped_release release;
  if (has_costs || !costs.said.given().empty()) {
    CostOptions said = costs.said;
    if (said.given().empty()) said.file = "costs";
    options.check_used(said);
  }
  ScheduleValue value;
  value.loaded = options.load(costs.given, &value.remarks);
  value.remarks = in_python(std::move(value.remarks));
  if (!options.memory_limit.empty()) options.check_memory(lower_valid(value.loaded), costs.given);
  return value;
}

void bind_class(nb::module_& module) {
  nb::class_<ScheduleValue>(module, "Schedule", "What runs on which rank, in which order: see schedule().")
      .def_prop_ro(
          "name", [](const ScheduleValue& self) { return self.schedule().name; }, "Of the catalog, or of the file.")
      .def_prop_ro(
          "ranks", [](const ScheduleValue& self) { return self.schedule().ranks(); }, "Pipeline ranks, P.")
      .def_prop_ro(
          "stages", [](const ScheduleValue& self) { return self.schedule().placement.stages(); },
          "Stages, over all chains.")
      .def_prop_ro(
          "microbatches", [](const ScheduleValue& self) { return self.schedule().total_micro_batches(); },
          "Micro-batches, M, over all chains.")
      .def_prop_ro(
          "chains", [](const ScheduleValue& self) { return chains_of(self.schedule().placement); },
          nb::sig("def chains(self) -> list[list[int]]"),
          "The rank of each stage, chain by chain: stages are numbered through all chains.")
      .def_prop_ro(
          "weights", [](const ScheduleValue& self) { return self.schedule().placement.weights_of; },
          "The parameter set of each stage; stages with equal numbers share their weights.")
      .def_prop_ro("ops", &ops_of, nb::sig("def ops(self) -> list[list[str]]"),
                   "Of each rank, in order: \"3B7\" is stage 3, pass B (the full backward), micro-batch 7;\n"
                   "\"(0F7;3B5)OVERLAP_F_B\" an F&B pair.")
      .def_prop_ro(
          "remarks", [](const ScheduleValue& self) { return self.remarks; },
          "What must be known of how it was read, or made.")
      .def_prop_ro(
          "has_communication", [](const ScheduleValue& self) { return std::holds_alternative<Program>(self.loaded); },
          "Whether it has sends, receives and reductions: lowered, or from such a file.")
      .def("validate", &violations_of, nb::call_guard<nb::gil_scoped_release>(),
           "Each rule that it breaks, with rank and op; empty: it is valid.")
      .def("find_deadlock", &deadlock_of, nb::arg("comm") = "latency", nb::call_guard<nb::gil_scoped_release>(),
           "Whether it would hang under a model of communication (\"latency\", \"links\", \"stream\"): the cycle in "
           "which\n"
           "each op waits for the next, or None. Raises InputError if it is not valid.")
      .def(
          "lower",
          [](const ScheduleValue& self) {
            return ScheduleValue{lower_valid(self.loaded), self.remarks};
          },
          nb::call_guard<nb::gil_scoped_release>(),
          "The same with every send, receive and reduction. Raises InputError if it is not valid.")
      .def(
          "strip",
          [](const ScheduleValue& self) {
            return ScheduleValue{self.schedule(), self.remarks};
          },
          "The same without communication.")
      .def("to_csv", &csv_of, "PyTorch's format: compute_comms with communication, else compute_only.")
      .def("to_json", &json_of, "Our format (docs/schedule-files.md), which holds all there is.")
      .def(
          "__eq__",
          [](const ScheduleValue& self, nb::handle other) {
            return nb::isinstance<ScheduleValue>(other) && self.loaded == nb::cast<const ScheduleValue&>(other).loaded;
          },
          nb::arg("other"), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", &text_of_schedule);
}

nb::list takes_of(const Family& family) {
  nb::list names;
  for (const Parameter& each : parameters()) {
    if (family.*each.is_taken) names.append(each.name);
  }
  return names;
}

void bind_catalog(nb::module_& module) {
  nb::class_<Family>(module, "Family", "A schedule of the catalog.")
      .def_ro("name", &Family::name, "What schedule(), simulate() and table() take.")
      .def_ro("title", &Family::title, "What it is.")
      .def_ro("paper", &Family::paper, "Where it is from.")
      .def_ro("rule", &Family::rule, "Which shapes it has.")
      .def_prop_ro("takes", &takes_of, nb::sig("def takes(self) -> list[str]"),
                   "Keywords of its shape besides ranks and microbatches.")
      .def_ro("splits_backward", &Family::splits_backward, "Whether it has I and W, in some shapes at least.")
      .def_ro("has_pairs", &Family::has_pairs, "Whether it has F&B, in some shapes at least.")
      .def_ro("is_automatic", &Family::is_automatic, "Whether its order depends on costs and a memory limit.")
      .def_prop_ro(
          "bubble", &closed_form_text,
          "The published formula for the idle time of the rank that idles most, and when it holds; \"\": none.")
      .def("__repr__", [](const Family& family) { return std::string(family.name).append(": ").append(family.title); });
  module.def(
      "catalog",
      [] {
        nb::list families;
        for (const Family& each : catalog()) families.append(nb::cast(&each, nb::rv_policy::reference));
        return families;
      },
      nb::sig("def catalog() -> list[Family]"), "The schedules that have a name.");
}

}  // namespace

ScheduleOptions schedule_options(nb::handle source, const nb::kwargs& arguments) {
  ScheduleOptions options;
  read(arguments, keywords_of(options));
  if (nb::isinstance<ScheduleValue>(source)) {
    const auto& value = nb::cast<const ScheduleValue&>(source);
    options.source = value.schedule().name;
    options.given = &value.loaded;
  } else {
    options.source = path_of(source);
  }
  return options;
}

std::string schedule_signature() {
  ScheduleOptions options;
  return signature_of(keywords_of(options));
}

void bind_schedule(nb::module_& module) {
  bind_class(module);
  bind_catalog(module);
  const std::string signature = std::string("def schedule(source: ") + path_type + ", *, " + schedule_signature() +
                                ", " + costs_signature() + ") -> Schedule";
  module.def("schedule", &load, nb::arg("source"), nb::arg("keywords"), nb::sig(signature.c_str()), schedule_doc);
}

}  // namespace dualpipe::python
