// What the GEMVs share. A block computes 16 values of N, the rows of one tensor-core product; its 8 warps take turns
// along K and leave partial sums, which are added here.
#pragma once

#include "device.h"
#include "epilogue.h"
#include "gemv_rows.h"
#include "gemv_shape.h"

namespace edge_awq {

// What a block of a GEMV shares beside the rows of x.
template <class Results, class Rows>
struct GemvShared {
  Results results;
  typename Rows::Sums norm;
};

// The warps' sums in shared memory. Column c of tile t is row t * kTileRows + c % kTileRows of x, and there are
// kColumns / kTileRows columns for each row, whose sums belong together.
template <int kTiles, int kTileRows>
struct GemvSums {
  static constexpr int kColumns = 8;
  float sums[kGemvWarps][kTiles][kColumns][kGemvOutputs];

  // One lane's results of its warp's products: those of its columns for one value of N, then for the one 8 further on.
  __device__ __forceinline__ void put(const float (&lane_sums)[kTiles][4]) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    for (int tile = 0; tile < kTiles; ++tile)
      for (int i = 0; i < 4; ++i)
        sums[warp][tile][lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = lane_sums[tile][i];
  }

  // One thread per output adds them up, always in the same order, and stores what becomes of the sum.
  __device__ __forceinline__ void store(const Linear& a) const {
    const int gated = opaque(a.gated), per_block = kGemvOutputs >> gated;
    const int within = threadIdx.x % kGemvOutputs, row = threadIdx.x / kGemvOutputs;
    const int output = blockIdx.x * per_block + within;
    if (row >= a.rows || within >= per_block || output >= a.N >> gated) return;
    store_output(a, row, output, total(row, within), gated ? total(row, within + kGemvOutputs / 2) : 0.0f);
  }

  __device__ __forceinline__ float total(int row, int n) const {
    float sum = 0.0f;
    for (int column = row % kTileRows; column < kColumns; column += kTileRows)
      for (int warp = 0; warp < kGemvWarps; ++warp) sum += sums[warp][row / kTileRows][column][n];
    return sum;
  }
};

// The two rows of W that a lane reads, of the 16 of its block: `row` and the one 8 further on, or, where gated, the one
// that it gates. Rows past the last read the last again; their sums are never stored.
struct GemvRows {
  int n[2];

  __device__ __forceinline__ GemvRows(const Linear& a, int row) {
    const int first = blockIdx.x * (kGemvOutputs >> a.gated) + row, outputs = a.N >> a.gated;
    const int second = first + (a.gated ? outputs : kGemvOutputs / 2);
    n[0] = first < outputs ? first : outputs - 1;
    n[1] = second < a.N ? second : a.N - 1;
  }
};

// Multiplies this warp's chunks, of which kAhead are always on their way from memory: every kGemvWarps-th of `chunks`,
// from its own number on. The first are asked for before the previous kernel, which makes x, has finished.
//
// A kernel stands at one of its chunks, and `i` counts its chunks from there: load(i, left, loaded) asks for the weights
// of chunk i if that is one of the `left` chunks that follow; multiply(i, left, loaded, sums) adds its products to sums;
// advance() goes on by kAhead of them. So places within kAhead chunks are constants, for a load to add to its address.
template <int kAhead, class Kernel, class Sums>
__device__ __forceinline__ void multiply_chunks(Kernel& kernel, int chunks, Sums& sums) {
  typename Kernel::Loaded ahead[kAhead] = {};
  int left = chunks - threadIdx.x / kWarpSize;
  #pragma unroll
  for (int i = 0; i < kAhead; ++i) kernel.load(i, left, ahead[i]);
  if (chunks > 0) wait_for_previous_kernel();  // always: but no compiler moves a load past a branch
  kernel.prepare();
  #pragma unroll 1
  for (; left > 0; left -= kAhead * kGemvWarps) {
    #pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (left <= i * kGemvWarps) break;
      kernel.multiply(i, left, ahead[i], sums);
      kernel.load(i + kAhead, left, ahead[i]);
    }
    kernel.advance();
  }
  let_next_kernel_start();
}

}  // namespace edge_awq
