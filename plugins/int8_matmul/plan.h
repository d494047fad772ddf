// Which kernel computes an Int8MatMul, in what grid, or why none does. Host code, without CUDA.
#pragma once

#include "../common/linear_plan.h"
#include "kernel.h"

namespace edge_awq {

constexpr TileKernel kInt8Tiles[] = {
    tile_kernel<Int8Tile16>("int8_matmul_16"),
    tile_kernel<Int8Tile32>("int8_matmul_32"),
    tile_kernel<Int8Tile64>("int8_matmul_64"),
};

inline Launch plan(const Int8MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (!a.qweight || !a.scales || !a.zero_points) return refused("a tensor of W is null");
  if (!is_aligned(a.qweight)) return refused("qweight at %p is not aligned to 16 bytes", a.qweight);
  if (a.rows > kGemvMaxRows) return tile_launch(tile_for(kInt8Tiles, a.rows), a);
  return gemv_launch({"int8_gemv", "int8_gemv_normed"}, a, a.norm != NormKind::kNone);
}

// What `a` needs with the splits it has, and the splits that suit a GPU; see linear_plan.h.
inline int64_t partial_floats(const Int8MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_partial_floats(tile_for(kInt8Tiles, a.rows), a) : 0;
}
inline int counters(const Int8MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_counters(tile_for(kInt8Tiles, a.rows), a) : 0;
}
inline int best_splits(const Int8MatMulArguments& a, int multiprocessors) {
  return a.rows > kGemvMaxRows ? tile_splits(tile_for(kInt8Tiles, a.rows), a, multiprocessors) : 1;
}

}  // namespace edge_awq
