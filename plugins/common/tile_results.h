// What becomes of a tile's sums after tile.h has computed them: they are added over slices, and over the blocks that
// share the tile, and go to memory.
#pragma once

#include "device.h"
#include "epilogue.h"
#include "tile_shape.h"

namespace edge_awq {

// Where a block is in the grid: splits outermost, then groups of 8 tiles of N, in a group row by row. So blocks that
// run at the same time share both weights and rows of x in L2.
struct TilePlace {
  int n_tile, row_tile, split, tile, tiles;

  __device__ __forceinline__ TilePlace(int rows_per_tile, const Linear& a, int block) {
    const int outputs_per_tile = a.gated ? kTileOutputs / 2 : kTileOutputs;
    const int n_tiles = (outputs_of(a) + outputs_per_tile - 1) / outputs_per_tile;
    const int row_tiles = (a.rows + rows_per_tile - 1) / rows_per_tile;
    tiles = n_tiles * row_tiles;
    split = block / tiles;
    tile = block % tiles;
    const int first = tile / (kTileGroup * row_tiles) * kTileGroup;  // of the group
    const int width = n_tiles - first < kTileGroup ? n_tiles - first : kTileGroup;
    const int within = tile - first * row_tiles;
    n_tile = first + within % width;
    row_tile = within / width;
  }
};

template <class Shape>
struct TileResults {
  using Sums = float[Shape::kColumnTiles][2][4];  // by columns' tile, 16 rows of W, and what the tensor core says

  const Linear& a;
  const TilePlace place{Shape::kRows, a, opaque(static_cast<int>(blockIdx.x))};

  // Where the result for a row of x and a value of N lies in shared memory.
  __device__ __forceinline__ static float* result(int slice, int row, int n) {
    return reinterpret_cast<float*>(dynamic_shared(Shape::kSharedBytes)) +
           (slice * Shape::kRows + row) * Shape::kResultPitch + n;
  }

  __device__ __forceinline__ float* partial(int split, int row, int n) const {
    const int64_t tile = static_cast<int64_t>(split) * place.tiles + place.tile;
    return a.partial + (tile * Shape::kRows + row) * kTileOutputs + n;
  }

  __device__ __forceinline__ static void put(const Sums& sums) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int output_warp = warp % kOutputWarps, row_warp = warp / kOutputWarps % Shape::kRowWarps;
    const int slice = warp / kOutputWarps / Shape::kRowWarps;
    float* const own = result(slice, row_warp * (Shape::kRows / Shape::kRowWarps) + lane % 4 * 2,
                              output_warp * 32 + lane / 4);
    #pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile)
      #pragma unroll
      for (int i = 0; i < 8; ++i)
        store_shared(own + (tile * 8 + i % 2) * Shape::kResultPitch + i / 2 * 8, sums[tile][i / 4][i % 4]);
  }

  // The sum over slices, or over the blocks that share this tile if all have left theirs in memory.
  __device__ __forceinline__ float total(int row, int n, bool of_all_blocks) const {
    float sum = 0.0f;
    if (of_all_blocks) {
      for (int split = 0; split < a.splits; ++split) sum += *partial(split, row, n);
    } else {
      for (int slice = 0; slice < Shape::kSlices; ++slice) sum += *result(slice, row, n);
    }
    return sum;
  }

  __device__ __forceinline__ void store_outputs(bool of_all_blocks) const {
    const int log2_outputs = a.gated ? 6 : 7, outputs = 1 << log2_outputs;  // of the tile
    #pragma unroll 1
    for (int i = threadIdx.x; i < Shape::kRows << log2_outputs; i += Shape::kThreads) {
      const int row = i >> log2_outputs, within = i & (outputs - 1);
      const int row_of_x = place.row_tile * Shape::kRows + row, output = (place.n_tile << log2_outputs) + within;
      if (row_of_x >= a.rows || output >= outputs_of(a)) continue;
      const int n = a.gated ? within / 16 * 32 + within % 16 : within;
      const float up = a.gated ? total(row, n + 16, of_all_blocks) : 0.0f;
      store_output(a, row_of_x, output, total(row, n, of_all_blocks), up);
    }
  }

  __device__ __forceinline__ void store(const Sums& sums) const {
    put(sums);
    __syncthreads();
    if (a.splits == 1) return store_outputs(false);
    for (int i = threadIdx.x; i < Shape::kRows * kTileOutputs; i += Shape::kThreads)
      *partial(place.split, i / kTileOutputs, i % kTileOutputs) = total(i / kTileOutputs, i % kTileOutputs, false);
    if (is_last_block(a.finished + place.tile, a.splits)) store_outputs(true);
  }
};

}  // namespace edge_awq
