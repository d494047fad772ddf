// The fp16 linear's kernel as its callers see it.
//
//   y = x @ W.T + bias
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value.
struct Fp16GemvArguments {
  const Half* x;       // [rows, K]
  const Half* weight;  // [N, K]
  const Half* bias;    // [N], or null
  Half* y;             // [rows, N]
  float* logits;       // [rows, N], written instead of y: a head's results need more bits; or null
  int rows, K, N;
};

}  // namespace edge_awq
