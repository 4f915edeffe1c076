// dualpipe._exec: a rank's part of a pipeline whose stages are Python objects. What users call stands in
// dualpipe.pipeline and beside it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <memory>
#include <optional>

#include "dualpipe/exec/replay/replay.h"
#include "dualpipe/exec/transport/ordered_backend.h"
#include "dualpipe/sim/schedule/error.h"
#include "python/binding/exec/runner.h"
#include "python/binding/exec/stage.h"
#include "python/binding/exec/tensor.h"
#include "python/binding/sim/schedule.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dualpipe::python {
namespace {

// As long as the process lives.
nb::handle replay_error;
nb::handle transport_error;
nb::handle input_error;

// What was thrown in the op in which the rank failed.
std::exception_ptr cause_of(const std::exception& error) {
  try {
    std::rethrow_if_nested(error);
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

// Python's own exceptions come out as they were raised; the others as the class that says whose fault it is.
void translate_failure(const ReplayError& error) {
  try {
    if (const auto cause = cause_of(error)) std::rethrow_exception(cause);
  } catch (const PythonError& cause) {
    const std::string text = error.what();
    return cause.restore(text.substr(0, text.find(": ")));
  } catch (const TransportError&) {
    return PyErr_SetString(transport_error.ptr(), error.what());
  } catch (const detail::transport::TransferError&) {
    return PyErr_SetString(transport_error.ptr(), error.what());
  } catch (const InputError&) {
    return PyErr_SetString(input_error.ptr(), error.what());
  } catch (...) {  // the text names it
  }
  PyErr_SetString(replay_error.ptr(), error.what());
}

// A handler of Ctrl-C that has been waiting says more than what it has ended.
void translate(const std::exception_ptr& thrown, void* /*payload*/) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ReplayError& error) {
    if (!cause_of(error) || PyErr_CheckSignals() == 0) translate_failure(error);
  } catch (const TransportError& error) {
    if (PyErr_CheckSignals() == 0) PyErr_SetString(transport_error.ptr(), error.what());
  } catch (const PythonError& error) {
    error.restore("outside of an op");
  }
}

template <typename Class>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<Class>(self)->traverse(visit, arg) : 0;
}
template <typename Class>
int clear(PyObject* self) {
  nb::inst_ptr<Class>(self)->clear();
  return 0;
}
template <typename Class>
PyType_Slot* slots() {
  static PyType_Slot all[] = {{Py_tp_traverse, reinterpret_cast<void*>(&traverse<Class>)},
                              {Py_tp_clear, reinterpret_cast<void*>(&clear<Class>)},
                              {0, nullptr}};
  return all;
}

void bind_plan(nb::module_& module) {
  nb::class_<Plan>(module, "Plan")
      .def(
          "__init__",
          [](Plan* self, const ScheduleValue& schedule, const std::vector<int>& rank_of, bool reduces) {
            new (self) Plan(lower_valid(schedule.loaded, false, schedule.remarks), rank_of, reduces);
          },
          "schedule"_a, "rank_of"_a, "reduces"_a)
      .def_prop_ro("name", [](const Plan& plan) { return plan.program().schedule.name; })
      .def_prop_ro("ranks", [](const Plan& plan) { return plan.placement().ranks; })
      .def_prop_ro("chains", [](const Plan& plan) { return plan.placement().chains(); })
      .def_prop_ro("micro_batches", [](const Plan& plan) { return plan.program().schedule.micro_batches; })
      .def_prop_ro("fingerprint", &Plan::fingerprint)
      .def_prop_ro("rank_of", [](const Plan& plan) { return plan.placement().rank_of; })
      .def(
          "stages_on", [](const Plan& plan, int rank) { return plan.placement().stages_on(rank); }, "rank"_a)
      .def(
          "chain_of", [](const Plan& plan, int stage) { return plan.placement().chain_of(stage); }, "stage"_a)
      .def(
          "begins_chain", [](const Plan& plan, int stage) { return !plan.placement().previous(stage); }, "stage"_a)
      .def(
          "ends_chain", [](const Plan& plan, int stage) { return !plan.placement().next(stage); }, "stage"_a)
      .def(
          "sharers_of", [](const Plan& plan, int stage) { return plan.placement().sharers_of(stage); }, "stage"_a)
      .def("splits_backward", &Plan::splits_backward, "rank"_a);
}

}  // namespace
}  // namespace dualpipe::python

NB_MODULE(_exec, module) {
  using namespace dualpipe;
  using namespace dualpipe::python;
  module.doc() = "What dualpipe.Pipeline is made of; see there.";
  nb::module_::import_("torch");

  input_error = nb::module_::import_("dualpipe._sim").attr("InputError").inc_ref();
  transport_error = nb::exception<TransportError>(module, "TransportError", PyExc_RuntimeError).inc_ref();
  transport_error.attr("__doc__") =
      "The step ends because another rank has failed, or did not answer in time. Names the rank, its op and the cause.";
  replay_error = nb::exception<ReplayError>(module, "ReplayError", PyExc_RuntimeError).inc_ref();
  replay_error.attr("__doc__") =
      "A rank failed in an op, and not by an exception of Python's. Names the op and the cause.";
  nb::register_exception_translator(&translate);

  bind_plan(module);
  bind_deferral(module);
  nb::class_<PythonStage>(module, "Stage", nb::type_slots(slots<PythonStage>()))
      .def(nb::init<nb::object, bool, std::vector<at::Tensor>>(), "object"_a, "is_first"_a, "parameters"_a);
  nb::class_<Runner>(module, "Runner", nb::type_slots(slots<Runner>()))
      .def(
          "__init__",
          [](Runner* self, std::shared_ptr<const Plan> plan, int rank, const std::string& group,
             std::vector<nb::object> stages, double timeout, std::optional<int> cuda_device, bool catches_interrupt,
             bool measures_memory) {
            new (self) Runner(std::move(plan), rank, group, std::move(stages),
                              {timeout, cuda_device, catches_interrupt, measures_memory});
          },
          "plan"_a, "rank"_a, "group"_a, "stages"_a, "timeout"_a, "cuda_device"_a.none(), "catches_interrupt"_a,
          "measures_memory"_a)
      .def_prop_rw("catches_interrupt", &Runner::catches_interrupt,
                   [](Runner& runner, bool catches) { runner.set_catches_interrupt(catches); })
      .def("all_gather", &Runner::all_gather, "what"_a, "part"_a)
      .def("expect", &Runner::expect, "id"_a, "of_place"_a)
      .def("abort", &Runner::abort, "reason"_a)
      .def("step", &Runner::step, "inputs"_a, "loss_scale"_a, "has_loss"_a)
      .def("timeline", &Runner::timeline);
}
