// Int4MatMul's kernels as their callers see them.
//
//   W[n, k] = (qweight[n, k] - zero_points[n, k / group_size]) * scales[n, k / group_size]
#pragma once

#include "../common/linear.h"
#include "../common/tile_shape.h"

namespace edge_awq {

// The kernels' only parameter, by value. groups = K / group_size, rounded up.
struct Int4MatMulArguments : Linear {
  const uint8_t* qweight;      // [N, K / 2], two weights a byte along K, low nibble first
  const Half* scales;          // [N, groups]
  const uint8_t* zero_points;  // [N, (groups + 1) / 2], two a byte, low nibble first: each row starts on a byte
  int group_size;              // 64 or 128
};

// See common/tile_shape.h.
struct Int4Storage {
  static constexpr int kVectors = 2;
  static constexpr bool kScaled = true;
};

// The tiles for so many rows of x. All fit the 99 KiB of shared memory of the smallest GPUs.
using Int4Tile16 = TileShape<Int4Storage, 16, 1, 2, 5>;
using Int4Tile32 = TileShape<Int4Storage, 32, 1, 2, 5>;
using Int4Tile64 = TileShape<Int4Storage, 64, 1, 1, 5>;
using Int4Tile128 = TileShape<Int4Storage, 128, 2, 1, 4>;

}  // namespace edge_awq
