// Which kernel computes an fp16 linear, in what grid, or why none does. Host code, without CUDA.
#pragma once

#include "../common/linear_plan.h"
#include "kernel.h"

namespace edge_awq {

constexpr TileKernel kFp16Tiles[] = {
    tile_kernel<Fp16Tile16>("fp16_matmul_16"),
    tile_kernel<Fp16Tile32>("fp16_matmul_32"),
    tile_kernel<Fp16Tile64>("fp16_matmul_64"),
    tile_kernel<Fp16Tile128>("fp16_matmul_128"),
};

inline Launch plan(const Fp16MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (!a.weight) return refused("W is null");
  if (!is_aligned(a.weight)) return refused("weight at %p is not aligned to 16 bytes", a.weight);
  if (a.rows > kGemvMaxRows) return tile_launch(tile_for(kFp16Tiles, a.rows), a);
  return gemv_launch({"fp16_gemv", "fp16_gemv_normed"}, a, a.norm != NormKind::kNone);
}

// What `a` needs with the splits it has, and the splits that suit a GPU; see linear_plan.h.
inline int64_t partial_floats(const Fp16MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_partial_floats(tile_for(kFp16Tiles, a.rows), a) : 0;
}
inline int counters(const Fp16MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_counters(tile_for(kFp16Tiles, a.rows), a) : 0;
}
inline int best_splits(const Fp16MatMulArguments& a, int multiprocessors) {
  return a.rows > kGemvMaxRows ? tile_splits(tile_for(kFp16Tiles, a.rows), a, multiprocessors) : 1;
}

}  // namespace edge_awq
