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

// One row lies in shared memory there, with a norm or without.
inline bool is_chained(const Int4MatMulArguments& a) {
  return a.fp16_chains && a.rows == 1 && normed_bytes(a) <= kNormedMaxBytes;
}

inline Launch chained_launch(const Int4MatMulArguments& a) {
  const char* const kernel = a.group_size == 128 ? "int4_gemv_g128_chained" : "int4_gemv_g64_chained";
  Launch planned = gemv_launch({kernel, kernel}, a);
  planned.shared_bytes = static_cast<unsigned>(normed_bytes(a));
  return planned;
}

inline Launch plan(const Int4MatMulArguments& a) {
  if (const std::string reason = linear_refusal(a); !reason.empty()) return refused("%s", reason.c_str());
  if (a.group_size != 64 && a.group_size != 128) return refused("group_size = %d, not 64 or 128", a.group_size);
  if (!a.qweight || !a.scales || !a.zero_points) return refused("a tensor of W is null");
  if (!is_aligned(a.qweight)) return refused("qweight at %p is not aligned to 16 bytes", a.qweight);
  if (a.fp16_chains != 0 && a.fp16_chains != 1) return refused("fp16_chains = %d, not 0 or 1", a.fp16_chains);
  if (a.rows > kGemvMaxRows) return tile_launch(tile_for(kInt4Tiles, a.rows), a);
  if (is_chained(a)) return chained_launch(a);
  if (a.group_size == 128) return gemv_launch({"int4_gemv_g128", "int4_gemv_g128_normed"}, a);
  if (a.rows <= 4) return gemv_launch({"int4_gemv_g64_rows4", "int4_gemv_g64_rows4_normed"}, a);
  return gemv_launch({"int4_gemv_g64_rows8", "int4_gemv_g64_rows8_normed"}, a);
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
