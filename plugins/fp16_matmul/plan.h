// In what grid an fp16 linear is computed, or why it is not. Host code, without CUDA.
#pragma once

#include "../common/gemv_shape.h"
#include "../common/linear_plan.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const Fp16MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (a.rows > kGemvMaxRows) return refused("rows = %d, not 1 to %d", a.rows, kGemvMaxRows);
  if (!a.weight) return refused("W is null");
  if (!is_aligned(a.weight)) return refused("weight at %p is not aligned to 16 bytes", a.weight);
  return {"fp16_gemv", static_cast<unsigned>((a.N - 1) / kGemvOutputs + 1), kGemvThreads, ""};
}

}  // namespace edge_awq
