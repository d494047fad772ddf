// Which kernel computes an Int4MatMul, in what grid, or why none does. Host code, without CUDA.
#pragma once

#include "../common/gemv_shape.h"
#include "../common/linear_plan.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const Int4MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (a.rows > kGemvMaxRows) return refused("rows = %d, not 1 to %d", a.rows, kGemvMaxRows);
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (!a.qweight || !a.scales || !a.zero_points) return refused("a tensor of W is null");
  if (!is_aligned(a.qweight)) return refused("qweight at %p is not aligned to 16 bytes", a.qweight);
  const char* for_64 = a.rows <= 4 ? "int4_gemv_g64_rows4" : "int4_gemv_g64_rows8";
  const unsigned blocks = static_cast<unsigned>((a.N - 1) / kGemvOutputs + 1);
  return {a.group_size == 128 ? "int4_gemv_g128" : for_64, blocks, kGemvThreads, ""};
}

}  // namespace edge_awq
