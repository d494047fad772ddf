// The fp16 linear's kernels as their callers see them.
#pragma once

#include "../common/linear.h"
#include "../common/tile_shape.h"

namespace edge_awq {

// The kernels' only parameter, by value.
struct Fp16MatMulArguments : Linear {
  const Half* weight;  // [N, K]
};

// See common/tile_shape.h.
struct Fp16Storage {
  static constexpr int kVectors = 8;
  static constexpr bool kScaled = false;
};

// The tiles for so many rows of x. All fit the 99 KiB of shared memory of the smallest GPUs.
using Fp16Tile16 = TileShape<Fp16Storage, 16, 1, 1, 4>;
using Fp16Tile32 = TileShape<Fp16Storage, 32, 1, 1, 4>;
using Fp16Tile64 = TileShape<Fp16Storage, 64, 1, 1, 4>;
using Fp16Tile128 = TileShape<Fp16Storage, 128, 2, 1, 3>;

}  // namespace edge_awq
