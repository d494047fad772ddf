// Int8MatMul's kernel as its callers see it.
//
//   y = x @ W.T + bias,   W[n, k] = (qweight[n, k] - zero_points[n, k / group_size]) * scales[n, k / group_size]
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value. groups = K / group_size, rounded up.
struct Int8GemvArguments {
  const Half* x;               // [rows, K]
  const uint8_t* qweight;      // [N, K]
  const Half* scales;          // [N, groups]
  const uint8_t* zero_points;  // [N, groups]
  const Half* bias;            // [N], or null
  Half* y;                     // [rows, N]
  float* logits;               // [rows, N], written instead of y: a head's results need more bits; or null
  int rows, K, N, group_size;
};

}  // namespace edge_awq
