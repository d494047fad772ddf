// Int8MatMul's kernels as their callers see them.
//
//   W[n, k] = (qweight[n, k] - zero_points[n, k / group_size]) * scales[n, k / group_size]
#pragma once

#include "../common/linear.h"
#include "../common/tile_shape.h"

namespace edge_awq {

// The kernels' only parameter, by value. groups = K / group_size, rounded up.
struct Int8MatMulArguments : Linear {
  const uint8_t* qweight;      // [N, K]
  const Half* scales;          // [N, groups]
  const uint8_t* zero_points;  // [N, groups]
  int group_size;              // 64 or 128
};

// See common/tile_shape.h.
struct Int8Storage {
  static constexpr int kVectors = 4;
  static constexpr bool kScaled = true;
};

// The tiles for so many rows of x. All fit the 99 KiB of shared memory of the smallest GPUs.
using Int8Tile16 = TileShape<Int8Storage, 16, 1, 2, 4>;
using Int8Tile32 = TileShape<Int8Storage, 32, 1, 2, 3>;
using Int8Tile64 = TileShape<Int8Storage, 64, 1, 1, 4>;

}  // namespace edge_awq
