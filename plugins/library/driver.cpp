#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace edge_awq {
namespace {

// The symbol under `name`, as whatever kind of function `place` points to.
template <class Function>
bool find(void* library, const char* name, Function*& place) {
  place = reinterpret_cast<Function*>(dlsym(library, name));
  return place != nullptr;
}

Driver load() {
  Driver d{};
  const char* const elsewhere = std::getenv("EDGE_AWQ_CUDA_DRIVER");
  const std::string name = elsewhere ? elsewhere : "libcuda.so.1";
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    d.missing = std::string("no NVIDIA driver: ") + dlerror();
    return d;
  }
  const auto need = [&](const char* symbol, auto*& place) {
    if (!find(library, symbol, place) && d.missing.empty())
      d.missing = name + " has no " + symbol + ": CUDA 11.8 or newer is needed";
  };
  need("cuGetErrorName", d.get_error_name);
  need("cuGetErrorString", d.get_error_string);
  need("cuCtxGetCurrent", d.get_context);
  need("cuCtxGetDevice", d.get_context_device);
  need("cuDeviceGetAttribute", d.get_device_attribute);
  need("cuModuleLoadData", d.load_module);
  need("cuModuleGetFunction", d.get_function);
  need("cuFuncSetAttribute", d.set_function_attribute);
  need("cuLaunchKernel", d.launch);
  need("cuMemAlloc_v2", d.allocate);
  need("cuMemFree_v2", d.release);
  need("cuMemsetD8_v2", d.fill);
  need("cuStreamSynchronize", d.wait_for_stream);
  find(library, "cuLaunchKernelEx", d.launch_with);
  find(library, "cuCtxGetId", d.get_context_id);
  return d;
}

}  // namespace

const Driver& driver() {
  static const Driver loaded = load();
  return loaded;
}

std::string driver_error(const char* function, int status) {
  if (status == 0) return "";
  const char *name = nullptr, *meaning = nullptr;
  driver().get_error_name(status, &name);
  driver().get_error_string(status, &meaning);
  return std::string(function) + ": " + (name ? name : "unknown error") + " (" + std::to_string(status) + ")" +
         (meaning ? std::string(", ") + meaning : "");
}

}  // namespace edge_awq
