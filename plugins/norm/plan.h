// In what grid a norm is computed, or why it is not. Host code, without CUDA.
#pragma once

#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan_norm(const NormArguments& a, const char* kernel) {
  if (a.rows < 1) return refused("rows = %d", a.rows);
  if (a.size < 8 || a.size % 8 != 0) return refused("size = %d is not a multiple of 8", a.size);
  if (!a.x || !a.weight || !a.y) return refused("x, weight or y is null");
  if (!a.delta != !a.hidden) return refused("one of delta and hidden is null, the other is not");
  for (const void* address : {static_cast<const void*>(a.x), static_cast<const void*>(a.delta),
                              static_cast<const void*>(a.weight), static_cast<const void*>(a.bias),
                              static_cast<const void*>(a.hidden), static_cast<const void*>(a.y)})
    if (!is_aligned(address)) return refused("a tensor at %p is not aligned to 16 bytes", address);
  return {kernel, static_cast<unsigned>(a.rows), kNormThreads, ""};
}

inline Launch plan_rms_norm(const NormArguments& a) {
  return a.bias ? refused("rms_norm has no bias") : plan_norm(a, "rms_norm");
}

inline Launch plan_layer_norm(const NormArguments& a) { return plan_norm(a, "layer_norm"); }

}  // namespace edge_awq
