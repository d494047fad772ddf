// What the GEMVs share. A block computes 16 values of N, the rows of one tensor-core product; its 8 warps take turns
// along K and leave partial sums, which are added here.
#pragma once

#include "device.h"
#include "gemv_shape.h"

namespace edge_awq {

// The warps' sums in shared memory. Column c of tile t is row t * kTileRows + c % kTileRows of x, and there are
// 8 / kTileRows columns for each row, whose sums belong together.
template <int kTiles, int kTileRows>
struct GemvSums {
  float sums[kGemvWarps][kTiles][8][kGemvOutputs];

  // One lane's results of its warp's products.
  __device__ __forceinline__ void put(const float (&lane_sums)[kTiles][4]) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    for (int tile = 0; tile < kTiles; ++tile)
      for (int i = 0; i < 4; ++i) sums[warp][tile][lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = lane_sums[tile][i];
  }

  // One thread per output adds them up, always in the same order, then the bias, and stores the result.
  template <class Arguments>
  __device__ __forceinline__ void store(const Arguments& a) const {
    const int output = threadIdx.x % kGemvOutputs, row = threadIdx.x / kGemvOutputs;
    const int n = blockIdx.x * kGemvOutputs + output;
    if (row >= a.rows || n >= a.N) return;
    float sum = 0.0f;
    for (int column = row % kTileRows; column < 8; column += kTileRows)
      for (int warp = 0; warp < kGemvWarps; ++warp) sum += sums[warp][row / kTileRows][column][output];
    if (a.bias) sum += to_float(a.bias[n]);
    const int64_t place = static_cast<int64_t>(row) * a.N + n;
    if (a.logits) {
      a.logits[place] = sum;
    } else {
      a.y[place] = to_half(sum);
    }
  }
};

// The row of W that a lane reads for row `within` of its block. Rows past the last read the last again; their sums
// are never stored.
__device__ __forceinline__ int gemv_weight_row(int within, int N) {
  const int n = blockIdx.x * kGemvOutputs + within;
  return n < N ? n : N - 1;
}

// Multiplies this warp's chunks, of which kAhead are always on their way from memory. The first are asked for before
// the previous kernel, which makes x, has finished.
template <int kAhead, class Kernel, class Sums>
__device__ __forceinline__ void multiply_chunks(const Kernel& kernel, int chunks, Sums& sums) {
  const int warp = threadIdx.x / kWarpSize;
  decltype(kernel.load(0)) ahead[kAhead];
  #pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (warp + i * kGemvWarps < chunks) ahead[i] = kernel.load(warp + i * kGemvWarps);
  wait_for_previous_kernel();
  #pragma unroll 1
  for (int first = warp; first < chunks; first += kAhead * kGemvWarps) {
    #pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = first + i * kGemvWarps, next = chunk + kAhead * kGemvWarps;
      if (chunk < chunks) kernel.multiply(chunk, ahead[i], sums);
      if (next < chunks) ahead[i] = kernel.load(next);
    }
  }
  let_next_kernel_start();
}

}  // namespace edge_awq
