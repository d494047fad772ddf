// What a norm of a row takes: vectors of halves as floats, sums over a block, and the norm itself.
#pragma once

#include "device.h"

namespace edge_awq {

constexpr int kVectorHalves = 8;

__device__ __forceinline__ void unpack_halves(Vector vector, float (&values)[kVectorHalves]) {
  for (int i = 0; i < kVectorHalves; i += 2) {
    values[i] = to_float(low(vector.word[i / 2]));
    values[i + 1] = to_float(high(vector.word[i / 2]));
  }
}

__device__ __forceinline__ Vector pack_halves(const float (&values)[kVectorHalves]) {
  Vector vector;
  for (int i = 0; i < kVectorHalves; i += 2) vector.word[i / 2] = pair(to_half(values[i]), to_half(values[i + 1]));
  return vector;
}

// Eight fp32 values at a vector's place.
__device__ __forceinline__ void load_floats(const float* source, int vector, float (&values)[kVectorHalves]) {
  for (int half = 0; half < 2; ++half) {
    const Vector loaded = load_constant(reinterpret_cast<const Vector*>(source) + 2 * vector + half);
    for (int i = 0; i < 4; ++i) values[4 * half + i] = as_float(loaded.word[i]);
  }
}

__device__ __forceinline__ float sum_over_warp(float value) {
  for (int mask = kWarpSize / 2; mask; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// (y - mean) * factor * weight + bias; bias may be null.
__device__ __forceinline__ void normalize(float (&y)[kVectorHalves], float mean, float factor, const float* weight,
                                          const float* bias, int vector) {
  float weights[kVectorHalves], biases[kVectorHalves] = {};
  load_floats(weight, vector, weights);
  if (bias) load_floats(bias, vector, biases);
  for (int i = 0; i < kVectorHalves; ++i) y[i] = multiply_add((y[i] - mean) * factor, weights[i], biases[i]);
}

}  // namespace edge_awq
