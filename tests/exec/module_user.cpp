// Stands for a library that has DualPipe in it, such as a Python module: loaded by a program elsewhere, it has a CUDA
// module beside it.
#include <exception>
#include <string>

#include "dualpipe/exec/device/device.h"

// What the hardware says of itself, or why there is none; until the next call.
extern "C" const char* dualpipe_hardware_text() {
  static std::string text;
  try {
    text = dualpipe::cuda_hardware({})->description();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}
