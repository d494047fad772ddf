// In what grid an Int8MatMul is computed, or why it is not. Host code, without CUDA.
#pragma once

#include "../common/gemv_shape.h"
#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const Int8GemvArguments& a) {
  if (a.rows < 1 || a.rows > kGemvMaxRows) return refused("rows = %d, not 1 to %d", a.rows, kGemvMaxRows);
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (a.K < 64 || a.K % 64 != 0) return refused("K = %d is not a multiple of 64", a.K);
  if (a.N < 1) return refused("N = %d", a.N);
  if (!a.x || !a.qweight || !a.scales || !a.zero_points) return refused("x or a tensor of W is null");
  if (!a.y == !a.logits) return refused("one of y and logits must be null");
  if (!is_aligned(a.qweight)) return refused("qweight at %p is not aligned to 16 bytes", a.qweight);
  if (!is_aligned(a.x)) return refused("x at %p is not aligned to 16 bytes", a.x);
  return {"int8_gemv", static_cast<unsigned>((a.N - 1) / kGemvOutputs + 1), kGemvThreads, ""};
}

}  // namespace edge_awq
