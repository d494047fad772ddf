// Kernels as the driver holds them: loaded once per CUDA context, the machine code chosen by the device.
#pragma once

#include <string>
#include <vector>

#include "driver.h"

namespace edge_awq {

// The device of the current context.
struct Device {
  int compute_capability = 0;  // 87 for 8.7
  int multiprocessors = 0;
  int is_integrated = 0;  // a Jetson's

  // How many there may be where an engine runs that was built here: a Jetson's power modes turn some off, in pairs.
  std::vector<int> all_multiprocessors() const;
};

// Each returns why it failed, or an empty text.
std::string current_device(Device& device);
// A kernel whose launches may ask for so much dynamic shared memory.
std::string find_kernel(const char* name, unsigned shared_bytes, Handle& function, Device& device);
std::string load_kernels();  // all of them, so that no launch has to

// Of the current context; where there is none, one that memory can be planned for.
Device device_or_any();

}  // namespace edge_awq
