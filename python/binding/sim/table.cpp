#include "python/binding/sim/table.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/options/table_options.h"
#include "dualpipe/sim/report/table.h"
#include "python/binding/sim/arguments.h"
#include "python/binding/sim/costs.h"

namespace dualpipe::python {
namespace {

constexpr auto table_doc =
    R"(One model on the same ranks under each schedule that has the shape; sorted by makespan, the best marked.

ranks, microbatches   P and M (8 and 20); a list: a row for each pair
chunks, group, waves, replicas   of the schedules that take them
schedules     names of the catalog, and CSV or JSON files (all of the catalog)
equal         "ranks": one model on the same ranks; "stages": DeepSeek's table, which has DualPipeV on half the ranks
memory_limit  of a rank: which schedules fit
recompute     "none", "full", or both
seeds         so many runs with jitter: median, 5 % and 95 % of the makespan, and which schedule wins in how many
straggler     in each of these one rank, drawn anew, has this speed
tokens        of a micro-batch: tokens per second
flops         FLOPs of a micro-batch, and the peak FLOP/s of a rank: how much of the peak is reached
sort          by "makespan", "bubble" or "memory"; "none": as named

Costs, as of Costs, are of the model: one value is each rank's share of it, a list its parts in order.

Raises InputError, and where there is no row at all, with the reasons.)";

struct TableValue {
  ScheduleTable table;
  std::vector<std::string> remarks;
  ByteUnits units;
};

std::string text_of_table(const TableValue& self, std::size_t width) {
  return remarks_text(self.remarks) + to_text(self.table, {.width = width, .bytes = self.units});
}

nb::object rows_of(const TableValue& self) { return from_json(to_json(self.table))["rows"]; }

TableValue make(nb::kwargs arguments) {
  CostsValue costs = take_costs(arguments);
  TableOptions options;
  options.costs = std::move(costs.said);
  read(arguments, keywords_of(options));
  const nb::gil_scoped_release release;
  std::vector<std::string> remarks;
  const TableRequest request = options.request(costs.given, remarks);
  return {schedule_table(request), in_python(std::move(remarks)), options.costs.byte_units(options.memory_limit)};
}

}  // namespace

void bind_table(nb::module_& module) {
  nb::class_<TableValue>(module, "Table", "Schedules side by side: see table().")
      .def("text", &text_of_table, nb::arg("width") = 0,
           "What dualpipe-sim table prints; in at most so many columns, which leaves out what matters least.")
      .def("__repr__", [](const TableValue& self) { return text_of_table(self, columns_of_terminal()); })
      .def("_repr_html_", [](const TableValue& self) { return to_html(self.table, {.bytes = self.units}); })
      .def("to_markdown", [](const TableValue& self) { return to_markdown(self.table, {.bytes = self.units}); })
      .def(
          "to_csv", [](const TableValue& self) { return to_csv(self.table); }, "Times in ns.")
      .def(
          "to_json", [](const TableValue& self) { return to_json(self.table); }, "As dualpipe-sim table --format json.")
      .def(
          "to_dict", [](const TableValue& self) { return from_json(to_json(self.table)); },
          nb::sig("def to_dict(self) -> dict[str, typing.Any]"), "to_json() as Python's objects.")
      .def_prop_ro("rows", &rows_of, nb::sig("def rows(self) -> list[dict[str, typing.Any]]"),
                   "A record for each row, with the names of to_json().")
      .def_prop_ro(
          "remarks", [](const TableValue& self) { return self.remarks; }, "What must be known of how files were read.")
      .def(
          "to_pandas",
          [](const TableValue& self) {
            return package("pandas").attr("json_normalize")(rows_of(self), nb::arg("sep") = "_");
          },
          nb::sig("def to_pandas(self) -> typing.Any"), "A row for each of rows. Needs pandas.")
      .def("__len__", [](const TableValue& self) { return self.table.rows.size(); })
      .def(
          "__iter__", [](const TableValue& self) { return nb::iter(rows_of(self)); },
          nb::sig("def __iter__(self) -> collections.abc.Iterator[dict[str, typing.Any]]"));
  TableOptions options;
  const std::string signature =
      "def table(*, " + signature_of(keywords_of(options)) + ", " + costs_signature() + ") -> Table";
  module.def("table", &make, nb::arg("keywords"), nb::sig(signature.c_str()), table_doc);
}

}  // namespace dualpipe::python
