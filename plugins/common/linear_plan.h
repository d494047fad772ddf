// What every matmul's plan refuses. Host code, without CUDA.
#pragma once

#include "launch.h"
#include "linear.h"

namespace edge_awq {

// Why no kernel computes this, or an empty text. The weights' format has reasons of its own.
inline std::string linear_refusal(const Linear& a) {
  if (a.rows < 1) return refusal("rows = %d", a.rows);
  if (a.K < 64 || a.K % 64 != 0) return refusal("K = %d is not a multiple of 64", a.K);
  if (a.N < 1) return refusal("N = %d", a.N);
  if (!a.x) return refusal("x is null");
  if (!a.y == !a.logits) return refusal("one of y and logits must be null");
  if (!is_aligned(a.x)) return refusal("x at %p is not aligned to 16 bytes", a.x);
  return "";
}

}  // namespace edge_awq
