#include "python/binding/sim/errors.h"

#include <array>
#include <exception>
#include <string>

#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/simulate/deadlock.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "python/binding/sim/arguments.h"

namespace dualpipe::python {
namespace {

// Live as long as the interpreter, as the module's own references to them do.
struct Types {
  PyObject* input = nullptr;
  PyObject* shape = nullptr;
  PyObject* memory_limit = nullptr;
  PyObject* deadlock = nullptr;
};
Types types;

PyObject* add(nb::module_& module, const char* name, PyObject* base, const char* doc) {
  const std::string full = std::string("dualpipe._sim.") + name;
  PyObject* type = PyErr_NewExceptionWithDoc(full.c_str(), doc, base, nullptr);
  if (type == nullptr) nb::raise_python_error();
  module.attr(name) = nb::steal(type);
  return type;
}

void set(PyObject* type, const std::exception& error) { PyErr_SetString(type, in_python(error.what()).c_str()); }

void translate(const std::exception_ptr& error, void* /*payload*/) {
  try {
    std::rethrow_exception(error);
  } catch (const ShapeError& shape) {
    set(types.shape, shape);
  } catch (const MemoryLimitError& limit) {
    set(types.memory_limit, limit);
  } catch (const InputError& input) {
    set(types.input, input);
  } catch (const DeadlockError& deadlock) {
    set(types.deadlock, deadlock);
  }
}

}  // namespace

void bind_errors(nb::module_& module) {
  types.input =
      add(module, "InputError", PyExc_ValueError,
          "A file, text, number or combination that cannot be taken as it is. Names the place and the remedy.");
  types.shape = add(module, "ShapeError", types.input,
                    "A shape that a schedule cannot have. Names the rule, and the nearest shapes that work.");
  types.memory_limit = add(module, "MemoryLimitError", types.input,
                           "A rank holds more than the limit. Names the rank, and the least limit that works.");
  types.deadlock = add(module, "DeadlockError", PyExc_RuntimeError,
                       "A schedule hangs. Names the ops of the cycle in which each waits for the next.");
  nb::register_exception_translator(translate);
}

}  // namespace dualpipe::python
