// What stands in for a GPU in fake_driver.cpp: the kernels' own source on fibers. A module is its name.
#pragma once

#include "../../plugins/harness.cpp"

#include <dlfcn.h>

#include "fake_launch.h"

namespace device {

constexpr int kComputeCapability = 87;

inline int load(const char*) { return 0; }

inline void* symbol(const std::string& kernel) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&load), &self);
  return dlsym(dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD), kernel.c_str());
}

inline bool has(const std::string& kernel) { return symbol(kernel) != nullptr; }
inline void allocate(const void*, size_t) {}
inline void free(const void*) {}
inline void synchronize() {}
inline std::string fault() { return {}; }

// How much static shared memory a kernel has is known once it has run.
inline int run(const Recorded& launch, unsigned schedule, bool, const HasRoom& has_room) {
  const auto kernel = reinterpret_cast<void (*)(Arguments)>(symbol(launch.kernel));
  fibers::state.dynamic_bytes = launch.shared_bytes;
  const auto result = fibers::launch(launch.blocks, launch.threads, schedule, [&] { kernel(launch.arguments); });
  if (!has_room(fibers::state.static_bytes)) return kInvalidValue;
  return result == fibers::Outcome::kFinished && !fibers::state.overrun ? 0 : kLaunchFailed;
}

}  // namespace device
