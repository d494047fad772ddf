// Which kernel computes an Int4MatMul, in what grid, or why none does. Host code, without CUDA.
#pragma once

#include "../common/linear_plan.h"
#include "kernel.h"

namespace edge_awq {

constexpr TileKernel kInt4Tiles[] = {
    tile_kernel<Int4Tile16>("int4_matmul_16"),
    tile_kernel<Int4Tile32>("int4_matmul_32"),
    tile_kernel<Int4Tile64>("int4_matmul_64"),
    tile_kernel<Int4Tile128>("int4_matmul_128"),
};

inline Launch plan(const Int4MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (!a.qweight || !a.scales || !a.zero_points) return refused("a tensor of W is null");
  if (!is_aligned(a.qweight)) return refused("qweight at %p is not aligned to 16 bytes", a.qweight);
  if (a.rows > kGemvMaxRows) return tile_launch(tile_for(kInt4Tiles, a.rows), a);
  const bool is_shared = a.norm != NormKind::kNone || shared_rows_bytes(a) <= kSharedRowsGoodBytes;
  const auto launch = [&](const char* global, const char* shared) { return gemv_launch({global, shared}, a, is_shared); };
  if (a.group_size == 128) return launch("int4_gemv_g128_long", "int4_gemv_g128");
  if (a.rows <= 4) return launch("int4_gemv_g64_rows4_long", "int4_gemv_g64_rows4");
  return launch("int4_gemv_g64_rows8_long", "int4_gemv_g64_rows8");
}

// What `a` needs with the splits it has, and the splits that suit a GPU; see linear_plan.h.
inline int64_t partial_floats(const Int4MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_partial_floats(tile_for(kInt4Tiles, a.rows), a) : 0;
}
inline int counters(const Int4MatMulArguments& a) {
  return a.rows > kGemvMaxRows ? tile_counters(tile_for(kInt4Tiles, a.rows), a) : 0;
}
inline int best_splits(const Int4MatMulArguments& a, int multiprocessors) {
  return a.rows > kGemvMaxRows ? tile_splits(tile_for(kInt4Tiles, a.rows), a, multiprocessors) : 1;
}

}  // namespace edge_awq
