#include "python/binding/sim/costs.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <new>
#include <string>
#include <variant>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/output_file.h"
#include "dualpipe/sim/report/text_table.h"
#include "python/binding/sim/arguments.h"

namespace dualpipe::python {
namespace {

constexpr auto costs_doc =
    R"(What the parts of a model, or the stages of a schedule, cost.

Either from a file (docs/costs.md), or by keywords: of one stage each, or a list with one value per stage. The names and
units are those of `dualpipe-sim simulate --help`: a duration is "1.5ms", "850us", …, a bare number is milliseconds;
bytes are "64MiB", "2GB", …, a bare number is bytes; a bandwidth is "50GB/s" or "400Gbps".

forward, backward, weight      F, the full backward B, and its half W; I = B - W (1, 2, 1 ms)
recompute_time                 the forward that runs again before B or I, on top of them (0)
overlapped                     F&B, one overlapped pair (F + B: no gain)
activation_bytes               M_B, held from F to B or I (arXiv:2401.10241, section 4)
recompute_activation_bytes     what of it is held where the forward runs again (all)
weight_stash_bytes             M_W, what of it stays until W
workspace_bytes                what an op needs besides while it runs
parameter_bytes, gradient_bytes, optimizer_bytes   held all the time
comm                           "latency": links never contend; "links": each carries one message at a time; "stream": a
                               rank's messages go in order, as in NCCL
latency, bandwidth, bytes      of a message, of a link, and of a message
speed                          per rank: durations are divided by it
launch                         between two ops of a rank
jitter, seed                   durations vary evenly by up to this share
release_early                  an F&B pair hands over F and B when each is ready

Beside a file: comm, latency, bandwidth, speed, launch, jitter, seed and release_early replace what the file says.

Raises InputError for a value that cannot be taken, and for two that contradict each other.)";

// What is said of costs without a file, by keywords that are taken from the arguments.
CostOptions take_options(nb::kwargs& arguments) {
  CostOptions options;
  const Keywords keywords = keywords_of(options);
  nb::dict taken;
  for (const Keyword& each : keywords) {
    const nb::str name(each.name.data(), each.name.size());
    if (!arguments.contains(name)) continue;
    taken[name] = arguments[name];
    nb::del(arguments[name]);
  }
  read(nb::borrow<nb::kwargs>(taken), keywords);
  return options;
}

CostsValue costs_of(CostOptions options) {
  GivenCosts given = options.costs();
  return {std::move(given), std::move(options)};
}

std::string text_of_costs(const CostsValue& costs) {
  const auto entries = entries_of(costs.given);
  const bool is_model = std::holds_alternative<ModelCosts>(costs.given);
  const std::string of = is_model              ? "the model's " + format_count(entries.size(), "part")
                         : entries.size() == 1 ? "a stage"
                                               : "each of " + format_count(entries.size(), "stage");
  return costs_text(entries, of, machine_of(costs.given), true, costs.said.byte_units());
}

}  // namespace

CostsValue take_costs(nb::kwargs& arguments) {
  nb::object costs = nb::none();
  if (arguments.contains("costs")) {
    costs = arguments["costs"];
    nb::del(arguments["costs"]);
  }
  CostOptions options = take_options(arguments);
  if (nb::isinstance<CostsValue>(costs)) {
    std::string other = options.given();
    if (other.empty() && !options.jitter.empty()) other = "--jitter";
    if (other.empty() && !options.seed.empty()) other = "--seed";
    if (other.empty() && options.release_early) other = "--release-early";
    if (!other.empty()) throw UsageError("--costs", "a Costs says all there is; give " + other + " to Costs() itself");
    return nb::cast<CostsValue>(costs);
  }
  if (!costs.is_none()) options.file = path_of(costs);
  return costs_of(std::move(options));
}

std::string costs_signature() {
  CostOptions options;
  return std::string("costs: Costs | ") + path_type + " | None = None, " + signature_of(keywords_of(options));
}

void bind_costs(nb::module_& module) {
  CostOptions none;
  const std::string init = std::string("def __init__(self, file: ") + path_type + " | None = None, *, " +
                           signature_of(keywords_of(none)) + ") -> None";
  nb::class_<CostsValue>(module, "Costs", costs_doc)
      .def(
          "__init__",
          [](CostsValue* self, const nb::object& file, nb::kwargs keywords) {
            CostOptions options;
            if (!file.is_none()) options.file = path_of(file);
            read(keywords, keywords_of(options));
            new (self) CostsValue(costs_of(std::move(options)));
          },
          nb::arg("file") = nb::none(), nb::arg("keywords"), nb::sig(init.c_str()))
      .def_prop_ro(
          "is_of_model", [](const CostsValue& self) { return std::holds_alternative<ModelCosts>(self.given); },
          "Whether they are of the parts of a model, which serve every schedule; else of the stages of one.")
      .def("__len__", [](const CostsValue& self) { return entries_of(self.given).size(); })
      .def(
          "__eq__",
          [](const CostsValue& self, nb::handle other) {
            return nb::isinstance<CostsValue>(other) && self.given == nb::cast<const CostsValue&>(other).given;
          },
          nb::arg("other"), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", &text_of_costs)
      .def(
          "to_json",
          [](const CostsValue& self) { return written([&](std::ostream& out) { write_costs(out, self.given); }); },
          "The text of a costs file (docs/costs.md).")
      .def(
          "to_dict",
          [](const CostsValue& self) {
            return from_json(written([&](std::ostream& out) { write_costs(out, self.given); }));
          },
          nb::sig("def to_dict(self) -> dict[str, typing.Any]"), "The same as to_json(), as Python's objects.")
      .def(
          "save",
          [](const CostsValue& self, nb::handle path) {
            write_output_file(path_of(path), [&](std::ostream& out) { write_costs(out, self.given); });
          },
          nb::arg("path"), nb::sig("def save(self, path: str | os.PathLike[str]) -> None"),
          "Writes a costs file, which dualpipe-sim --costs and Costs(path) read.");
}

}  // namespace dualpipe::python
