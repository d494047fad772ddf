// What is done to a matmul's sums on their way to memory; see linear.h.
#pragma once

#include "device.h"
#include "linear.h"

namespace edge_awq {

__device__ __forceinline__ float sigmoid(float z) {
  constexpr float kLog2OfE = 1.44269504f;
  return reciprocal(1.0f + power_of_two(-kLog2OfE * z));
}

// A NaN stays one in all of them.
__device__ __forceinline__ float activate(Activation activation, float z) {
  constexpr float kRootOfHalf = 0.707106781f, kTwiceRootOfTwoOverPi = 1.59576912f;
  switch (activation) {
    case Activation::kRelu: return z < 0.0f ? 0.0f : z;
    case Activation::kSilu: return z * sigmoid(z);
    case Activation::kGelu: return 0.5f * z * (1.0f + error_function(kRootOfHalf * z));
    case Activation::kGeluTanh:  // (1 + tanh(u)) / 2 is sigmoid(2 u)
      return z * sigmoid(kTwiceRootOfTwoOverPi * multiply_add(0.044715f * z * z, z, z));
    default: return z;
  }
}

__device__ __forceinline__ int outputs_of(const Linear& a) { return a.gated ? a.N / 2 : a.N; }

// Makes an output of its sums and stores it. `up` is the sum of row N / 2 + output where gated, and ignored elsewhere.
__device__ __forceinline__ void store_output(const Linear& a, int row, int output, float sum, float up) {
  const int outputs = outputs_of(a);
  if (a.bias) sum += to_float(a.bias[output]);
  sum = activate(a.activation, sum);
  if (a.gated) sum *= a.bias ? up + to_float(a.bias[outputs + output]) : up;
  if (a.act_scale) sum *= a.act_scale[output];
  const int64_t place = static_cast<int64_t>(row) * outputs + output;
  if (a.residual) sum += to_float(a.residual[place]);
  if (a.logits) {
    a.logits[place] = sum;
  } else {
    a.y[place] = to_half(sum);
  }
}

}  // namespace edge_awq
