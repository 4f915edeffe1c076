// Ctrl-C while the interpreter's main thread waits in C++, where it runs no handlers. Private to the binding.
#pragma once

#include <stop_token>

namespace dualpipe::python {

// While it lives, SIGINT requests a stop, besides what it does else: the interpreter notes it, and raises
// KeyboardInterrupt when the main thread comes back to it (PyErr_CheckSignals). One at a time; for the main thread,
// which alone gets signals.
class StopAtInterrupt {
 public:
  // `is_wanted`: false: it does nothing.
  StopAtInterrupt(std::stop_source& source, bool is_wanted);
  ~StopAtInterrupt();
  StopAtInterrupt(const StopAtInterrupt&) = delete;
  StopAtInterrupt& operator=(const StopAtInterrupt&) = delete;

 private:
  bool is_wanted_;
};

}  // namespace dualpipe::python
