#include "python/binding/sim/sweep.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/options/sweep_options.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/sweep/sweep.h"
#include "python/binding/sim/arguments.h"
#include "python/binding/sim/costs.h"

namespace dualpipe::python {
namespace {

constexpr auto grid_doc =
    R"(What a sweep goes through: every schedule, in every shape, with every value of each axis. Points have numbers.

ranks, microbatches   P and M; lists
chunks, group, waves, replicas   of the schedules that take them; lists
schedules     names of the catalog, and CSV or JSON files, which are there in the shape that they have (all of the
              catalog); without ranks and microbatches all have the shapes of the files
set           a dictionary of costs by keyword, and their values, {"latency": ["0", "20us"], "forward": ["0.9x", "1x"]};
              and {"speed": ["1", "0.9@3"]}: rank 3 is slow
memory_limit, recompute, cuts   lists, as of the command line
seeds         so many draws of the jitter, and of the straggler
straggler     a list; in each of these one rank, drawn anew, has this speed
tokens        of a micro-batch: tokens per second
gpus, global_batch   all ways in which so many GPUs share a step, of costs that dualpipe-sim estimate wrote

Costs, as of Costs, are of the model: one value is each rank's share of it. Raises InputError.)";

// Taken from the arguments.
std::vector<std::string> take_sets(nb::kwargs& arguments) {
  std::vector<std::string> sets;
  if (!arguments.contains("set")) return sets;
  for (const auto& [name, values] : nb::cast<nb::dict>(nb::object(arguments["set"]))) {
    auto cost = nb::cast<std::string>(name);
    std::ranges::replace(cost, '_', '-');
    cost += '=';
    const bool is_one = nb::isinstance<nb::str>(values) || !nb::hasattr(values, "__iter__");
    const nb::list list = is_one ? nb::list() : nb::list(values);
    if (is_one) cost += text_of("set", values).value_or("");
    for (std::size_t i = 0; i < nb::len(list); ++i) cost += (i > 0 ? "," : "") + text_of("set", list[i]).value_or("");
    sets.push_back(std::move(cost));
  }
  nb::del(arguments["set"]);
  return sets;
}

void make_grid(Sweep* self, nb::kwargs arguments) {
  SweepOptions options;
  options.sets = take_sets(arguments);
  CostsValue costs = take_costs(arguments);
  options.costs = std::move(costs.said);
  read(arguments, keywords_of(options));
  std::vector<std::string> remarks;
  SweepGrid grid = options.grid(std::move(costs.given), remarks);
  for (const std::string& each : in_python(std::move(remarks))) {
    if (PyErr_WarnEx(PyExc_UserWarning, each.c_str(), 1) != 0) throw nb::python_error();
  }
  new (self) Sweep(std::move(grid));
}

}  // namespace

void bind_sweep(nb::module_& module) {
  SweepOptions options;
  const std::string signature = "def __init__(self, *, " + signature_of(keywords_of(options)) +
                                ", set: dict[str, typing.Any] | None = None, " + costs_signature() + ") -> None";
  nb::class_<Sweep>(module, "Grid", grid_doc)
      .def("__init__", &make_grid, nb::arg("keywords"), nb::sig(signature.c_str()))
      .def("__len__", &Sweep::size)
      .def(
          "to_json", [](const Sweep& self) { return to_json_line(self.grid()); }, "In one line: see from_json().")
      .def_static(
          "from_json", [](const std::string& text) { return new Sweep(grid_of_json(text, "grid")); }, nb::arg("text"),
          nb::rv_policy::take_ownership)
      .def("__getstate__", [](const Sweep& self) { return to_json_line(self.grid()); })
      .def("__setstate__", [](Sweep* self, const std::string& text) { new (self) Sweep(grid_of_json(text, "grid")); })
      .def_prop_ro(
          "header", [](const Sweep& self) { return self.header(); }, "The first line of a file of all points.")
      .def_prop_ro(
          "columns", [](const Sweep& self) { return self.columns(); }, "What a line may have, by name.")
      .def(
          "lines",
          [](const Sweep& self, std::size_t begin, std::size_t end) {
            if (begin > end || end > self.size()) {
              throw InputError("lines: the grid has " + std::to_string(self.size()) + " points");
            }
            const nb::gil_scoped_release release;
            return self.lines({}, begin, end);
          },
          nb::arg("begin"), nb::arg("end"),
          "Evaluates the points of these numbers: a line of JSON for each. Runs beside other threads.");
}

}  // namespace dualpipe::python
