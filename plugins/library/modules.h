// Kernels as the driver holds them: loaded once per CUDA context, the machine code chosen by the device.
#pragma once

#include <string>

#include "driver.h"

namespace edge_awq {

// The device of the current context.
struct Device {
  int compute_capability = 0;  // 87 for 8.7
  int multiprocessors = 0;
};

// Each returns why it failed, or an empty text.
std::string current_device(Device& device);
std::string find_kernel(const char* name, Handle& function, Device& device);
std::string allow_shared(const char* found, unsigned bytes);  // so much dynamic shared memory for launches of a kernel
std::string load_kernels();  // all of them, so that no launch has to

}  // namespace edge_awq
