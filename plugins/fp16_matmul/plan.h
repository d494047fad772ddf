// In what grid an fp16 linear is computed, or why it is not. Host code, without CUDA.
#pragma once

#include "../common/gemv_shape.h"
#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const Fp16GemvArguments& a) {
  if (a.rows < 1 || a.rows > kGemvMaxRows) return refused("rows = %d, not 1 to %d", a.rows, kGemvMaxRows);
  if (a.K < 64 || a.K % 64 != 0) return refused("K = %d is not a multiple of 64", a.K);
  if (a.N < 1) return refused("N = %d", a.N);
  if (!a.x || !a.weight) return refused("x or W is null");
  if (!a.y == !a.logits) return refused("one of y and logits must be null");
  if (!is_aligned(a.weight)) return refused("weight at %p is not aligned to 16 bytes", a.weight);
  if (!is_aligned(a.x)) return refused("x at %p is not aligned to 16 bytes", a.x);
  return {"fp16_gemv", static_cast<unsigned>((a.N - 1) / kGemvOutputs + 1), kGemvThreads, ""};
}

}  // namespace edge_awq
