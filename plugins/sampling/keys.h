// Logits as unsigned integers of the same order.
#pragma once

#include "../common/device.h"

namespace edge_awq {

constexpr uint32_t kKeyOfNan = 0xffffffffu, kKeyOfInfinity = 0xff800000u, kKeyOfMinusInfinity = 0x007fffffu;

// A key is the logit's bits, arranged so that unsigned integers compare as the floats do.
__device__ __forceinline__ uint32_t key_of(float logit) {
  if (logit != logit) return kKeyOfNan;
  const uint32_t bits = as_bits(logit + 0.0f);  // -0 becomes 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ bool is_finite_key(uint32_t key) {
  return key > kKeyOfMinusInfinity && key < kKeyOfInfinity;
}

__device__ __forceinline__ float logit_of(uint32_t key) {
  return as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

}  // namespace edge_awq
