// Norms as their callers see them, with the residual stream's addition in front.
//
//   hidden = x + delta
//   rms_norm:   y = hidden / sqrt(mean(hidden^2) + epsilon) * weight
//   layer_norm: y = (hidden - mean(hidden)) / sqrt(variance(hidden) + epsilon) * weight + bias
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernels' only parameter, by value.
struct NormArguments {
  const Half* x;        // [rows, size], the residual stream
  const Half* delta;    // [rows, size], what the last sublayer adds to it, or null
  const float* weight;  // [size]
  const float* bias;    // [size], or null; layer_norm only
  Half* hidden;         // [rows, size], the new residual stream; may be x itself; null if delta is
  Half* y;              // [rows, size]
  int rows, size;
  float epsilon;
};

constexpr int kNormThreads = 512;  // per block; a block has one row

}  // namespace edge_awq
