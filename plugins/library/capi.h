// The library without TensorRT, for ctypes: launches with raw device pointers in the current CUDA context.
//
// Functions that return int return 0, or 1 after having said why (edge_awq_last_error).
#pragma once

#include <cstddef>
#include <cstdint>

#define EDGE_AWQ_API extern "C" __attribute__((visibility("default")))

namespace edge_awq {

// An attribute: type 5 is a pointer to an int32, type 1 to a float.
struct CField {
  const char* name;
  const void* data;
  int type, length;
};

// A tensor in device memory, dense, the last dimension fastest.
struct CTensor {
  void* data;
  int rank;
  int64_t dims[8];
};

}  // namespace edge_awq

EDGE_AWQ_API int edge_awq_contract_version();
EDGE_AWQ_API const char* edge_awq_last_error();   // of this thread
EDGE_AWQ_API const char* edge_awq_kernels();      // a line per kernel: its name, then sm_* and compute_*
EDGE_AWQ_API const char* edge_awq_ops();          // a line per op: its name, then its attributes
EDGE_AWQ_API int edge_awq_load();                 // all kernels, for the current context
EDGE_AWQ_API void edge_awq_set_dependent_launch(int allowed);

// A kernel by the name of its plan, with its arguments as <op>/kernel.h has them.
EDGE_AWQ_API int edge_awq_launch(const char* plan, const void* arguments, size_t bytes, void* stream);

// An op; null after having said why.
EDGE_AWQ_API void* edge_awq_create(const char* op, const edge_awq::CField* fields, int count);
EDGE_AWQ_API void edge_awq_destroy(void* op);
EDGE_AWQ_API int64_t edge_awq_workspace_bytes(void* op, const edge_awq::CTensor* inputs, int count);  // or -1
EDGE_AWQ_API int edge_awq_prepare(void* op, const edge_awq::CTensor* inputs, int count);
EDGE_AWQ_API int edge_awq_enqueue(void* op, const edge_awq::CTensor* inputs, int input_count,
                                  const edge_awq::CTensor* outputs, int output_count, void* workspace, void* stream);
