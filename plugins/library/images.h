// The compiled kernels inside this library. build_library.py writes the table (and the bytes, in assembler).
#pragma once

#include <cstddef>

namespace edge_awq {

// One .cu file for one architecture.
struct Image {
  const char* source;    // "int4_matmul_gemv"
  int architecture;      // 87 for sm_87; of PTX, the oldest GPU that may compile it
  bool is_ptx;
  const char *begin, *end;
};

struct KernelName {
  const char *kernel, *source;
};

extern const Image kImages[];
extern const size_t kImageCount;
extern const KernelName kKernels[];
extern const size_t kKernelCount;

}  // namespace edge_awq
