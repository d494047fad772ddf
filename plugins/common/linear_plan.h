// What the matmuls' plans share, whatever the weights' format. Host code, without CUDA.
#pragma once

#include <algorithm>

#include "gemv_shape.h"
#include "launch.h"
#include "linear.h"
#include "tile_shape.h"

namespace edge_awq {

// Why no kernel computes this, or an empty text. The weights' format has reasons of its own.
inline std::string linear_refusal(const Linear& a) {
  if (a.rows < 1) return refusal("rows = %d", a.rows);
  if (a.K < 64 || a.K % 64 != 0) return refusal("K = %d is not a multiple of 64", a.K);
  if (a.N < 1) return refusal("N = %d", a.N);
  if (a.gated && a.N % 2 != 0) return refusal("N = %d is odd, so there is no gate for every output", a.N);
  if (a.activation < Activation::kNone || a.activation > Activation::kSilu)
    return refusal("activation = %d is not one of linear.h", static_cast<int>(a.activation));
  if (!a.x) return refusal("x is null");
  if (!a.y == !a.logits) return refusal("one of y and logits must be null");
  if (!is_aligned(a.x)) return refusal("x at %p is not aligned to 16 bytes", a.x);
  if (a.norm != NormKind::kNone) return refusal("norm = %d, but no matmul has one yet", static_cast<int>(a.norm));
  if (a.splits < 1) return refusal("splits = %d", a.splits);
  return "";
}

inline int outputs_per_block(const Linear& a, int weight_rows) { return a.gated ? weight_rows / 2 : weight_rows; }

// In how many blocks `weight_rows` rows of W each are computed.
inline int output_blocks(const Linear& a, int weight_rows) {
  const int outputs = a.gated ? a.N / 2 : a.N, per_block = outputs_per_block(a, weight_rows);
  return (outputs - 1) / per_block + 1;
}

inline Launch gemv_launch(const char* kernel, const Linear& a) {
  if (a.splits != 1) return refused("splits = %d, but up to %d rows are computed in one", a.splits, kGemvMaxRows);
  return {kernel, static_cast<unsigned>(output_blocks(a, kGemvOutputs)), kGemvThreads, ""};
}

// A TileShape as its launches see it.
struct TileKernel {
  const char* kernel;
  int rows, stage_k, threads, shared_bytes;
};

template <class Shape>
constexpr TileKernel tile_kernel(const char* kernel) {
  return {kernel, Shape::kRows, Shape::kStageK, Shape::kThreads, Shape::kSharedBytes};
}

// The smallest tile that has all rows, or else the largest.
template <size_t count>
const TileKernel& tile_for(const TileKernel (&kernels)[count], int rows) {
  for (const TileKernel& each : kernels)
    if (rows <= each.rows) return each;
  return kernels[count - 1];
}

inline int tiles_of(const TileKernel& kernel, const Linear& a) {
  return output_blocks(a, kTileOutputs) * ((a.rows - 1) / kernel.rows + 1);
}

inline Launch tile_launch(const TileKernel& kernel, const Linear& a) {
  const int stages = (a.K - 1) / kernel.stage_k + 1, tiles = tiles_of(kernel, a);
  if (a.splits > stages) return refused("splits = %d, but K = %d has %d stages", a.splits, a.K, stages);
  if (a.splits > 1 && (!a.partial || !a.finished)) return refused("splits = %d without partial or finished", a.splits);
  return {kernel.kernel, static_cast<unsigned>(tiles) * static_cast<unsigned>(a.splits),
          static_cast<unsigned>(kernel.threads), "", static_cast<unsigned>(kernel.shared_bytes)};
}

// How many floats `partial` needs, and how many counters `finished`, for the splits that `a` asks for.
inline int64_t tile_partial_floats(const TileKernel& kernel, const Linear& a) {
  return a.splits == 1 ? 0 : static_cast<int64_t>(a.splits) * tiles_of(kernel, a) * kernel.rows * kTileOutputs;
}
inline int tile_counters(const TileKernel& kernel, const Linear& a) { return a.splits == 1 ? 0 : tiles_of(kernel, a); }

// Splits that give every multiprocessor a block, where K is long enough to pay for adding the parts up: each has at
// least four stages.
inline int tile_splits(const TileKernel& kernel, const Linear& a, int multiprocessors) {
  const int stages = (a.K - 1) / kernel.stage_k + 1;
  return std::clamp(multiprocessors / tiles_of(kernel, a), 1, std::max(1, stages / 4));
}

}  // namespace edge_awq
