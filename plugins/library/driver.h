// The CUDA driver, found at run time: the library links to nothing of CUDA and loads where no driver is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace edge_awq {

// What CUDA's cuda.h calls CUcontext, CUmodule, CUfunction and CUstream are pointers to something unknown.
using Handle = void*;
using DevicePointer = uint64_t;

// CUdevice_attribute and CUfunction_attribute, as numbered by cuda.h.
enum class DeviceAttribute : int { kMultiprocessors = 16, kIntegrated = 18, kMajor = 75, kMinor = 76 };
constexpr int kMaxDynamicSharedBytes = 8;

// CUlaunchAttribute and CUlaunchConfig. The only attribute used lets a kernel start before the previous one has ended.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int value;
  };
};
constexpr int kProgrammaticStreamSerialization = 6;

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56 && offsetof(LaunchConfig, stream) == 32);

// The functions that are used. They return 0 or a CUresult.
struct Driver {
  std::string missing;  // why there is no driver; empty if there is one

  int (*get_error_name)(int, const char**);
  int (*get_error_string)(int, const char**);
  int (*get_context)(Handle*);
  int (*get_context_device)(int*);
  int (*get_device_attribute)(int*, int, int);
  int (*load_module)(Handle*, const void*);
  int (*get_function)(Handle*, Handle, const char*);
  int (*set_function_attribute)(Handle, int, int);
  int (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
  int (*allocate)(DevicePointer*, size_t);
  int (*release)(DevicePointer);
  int (*fill)(DevicePointer, unsigned char, size_t);
  int (*wait_for_stream)(Handle);

  // Null where the driver is older than they are.
  int (*launch_with)(const LaunchConfig*, Handle, void**, void**);
  int (*get_context_id)(Handle, unsigned long long*);
};

// Loaded once per process: libcuda.so.1, or the file that EDGE_AWQ_CUDA_DRIVER names.
const Driver& driver();

// "cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (1), invalid argument", or an empty text for status 0.
std::string driver_error(const char* function, int status);

}  // namespace edge_awq
