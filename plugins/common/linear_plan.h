// What the matmuls' plans share, whatever the weights' format. Host code, without CUDA.
#pragma once

#include <algorithm>

#include "gemv_shape.h"
#include "launch.h"
#include "linear.h"
#include "tile_shape.h"

namespace edge_awq {

constexpr int kMaxInt = 0x7fffffff;  // places of scales are counted in ints ...
constexpr int kMaxK = 1 << 20;       // ... and so are those in a tile of x

// Of all rows of x in shared memory.
inline int64_t shared_rows_bytes(const Linear& a) {
  return static_cast<int64_t>(a.rows) * ((a.K / 8 - 1) / kSharedRowPitch + 1) * kSharedRowPitch * 16;
}

inline std::string norm_refusal(const Linear& a) {
  const int kind = static_cast<int>(a.norm);
  if (a.norm < NormKind::kNone || a.norm > NormKind::kLayer) return refusal("norm = %d is not one of linear.h", kind);
  if (a.norm == NormKind::kNone)
    return a.norm_weight || a.norm_bias ? refusal("norm = %d, but there is a weight or bias", kind) : "";
  if (a.rows > kGemvMaxRows)
    return refusal("rows = %d with a norm, not 1 to %d: launch the norm alone", a.rows, kGemvMaxRows);
  if (shared_rows_bytes(a) > kSharedRowsMaxBytes)
    return refusal("rows = %d of K = %d with a norm take %lld bytes of shared memory, not %d: launch the norm alone",
                   a.rows, a.K, static_cast<long long>(shared_rows_bytes(a)), kSharedRowsMaxBytes);
  if (!a.norm_weight) return refusal("norm_weight is null");
  if (a.norm_bias && a.norm != NormKind::kLayer) return refusal("norm = %d has no bias", kind);
  if (!is_aligned(a.norm_weight) || !is_aligned(a.norm_bias))
    return refusal("norm_weight at %p or norm_bias at %p is not aligned to 16 bytes", a.norm_weight, a.norm_bias);
  return "";
}

// Why no kernel computes this, or an empty text. The weights' format has reasons of its own.
inline std::string linear_refusal(const Linear& a) {
  if (a.rows < 1) return refusal("rows = %d", a.rows);
  if (a.K < 64 || a.K % 64 != 0) return refusal("K = %d is not a multiple of 64", a.K);
  if (a.N < 1) return refusal("N = %d", a.N);
  if (a.K > kMaxK || static_cast<int64_t>(a.N) * (a.K / 64) > kMaxInt)
    return refusal("W of [N, K] = [%d, %d]: K is at most %d, and N * K / 64 at most %d", a.N, a.K, kMaxK, kMaxInt);
  if (a.gated && a.N % 2 != 0) return refusal("N = %d is odd, so there is no gate for every output", a.N);
  if (a.activation < Activation::kNone || a.activation > Activation::kSilu)
    return refusal("activation = %d is not one of linear.h", static_cast<int>(a.activation));
  if (!a.x) return refusal("x is null");
  if (!a.y == !a.logits) return refusal("one of y and logits must be null");
  if (!is_aligned(a.x)) return refusal("x at %p is not aligned to 16 bytes", a.x);
  if (const std::string reason = norm_refusal(a); !reason.empty()) return reason;
  if (a.splits < 1) return refusal("splits = %d", a.splits);
  return "";
}

inline int outputs_per_block(const Linear& a, int weight_rows) { return a.gated ? weight_rows / 2 : weight_rows; }

// In how many blocks `weight_rows` rows of W each are computed.
inline int output_blocks(const Linear& a, int weight_rows) {
  const int outputs = a.gated ? a.N / 2 : a.N, per_block = outputs_per_block(a, weight_rows);
  return (outputs - 1) / per_block + 1;
}

// Kernels that read the rows of x from global memory, and from shared memory, beside up to 9 KiB of static one.
struct GemvKernel {
  const char *global, *shared;
};

inline Launch gemv_launch(const GemvKernel& kernel, const Linear& a, bool is_shared) {
  if (a.splits != 1) return refused("splits = %d, but up to %d rows are computed in one", a.splits, kGemvMaxRows);
  return {is_shared ? kernel.shared : kernel.global, static_cast<unsigned>(output_blocks(a, kGemvOutputs)), kGemvThreads,
          "", is_shared ? static_cast<unsigned>(shared_rows_bytes(a)) : 0};
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

inline int64_t tiles_of(const TileKernel& kernel, const Linear& a) {
  return static_cast<int64_t>(output_blocks(a, kTileOutputs)) * ((a.rows - 1) / kernel.rows + 1);
}

inline Launch tile_launch(const TileKernel& kernel, const Linear& a) {
  const int stages = (a.K - 1) / kernel.stage_k + 1;
  const int64_t tiles = tiles_of(kernel, a);
  if (a.splits > stages) return refused("splits = %d, but K = %d has %d stages", a.splits, a.K, stages);
  if (tiles * a.splits > kMaxInt)
    return refused("rows = %d and N = %d make %lld tiles, too many for %d splits", a.rows, a.N,
                   static_cast<long long>(tiles), a.splits);
  if (a.splits > 1 && (!a.partial || !a.finished)) return refused("splits = %d without partial or finished", a.splits);
  return {kernel.kernel, static_cast<unsigned>(tiles * a.splits),
          static_cast<unsigned>(kernel.threads), "", static_cast<unsigned>(kernel.shared_bytes)};
}

// How many floats `partial` needs, and how many counters `finished`, for the splits that `a` asks for.
inline int64_t tile_partial_floats(const TileKernel& kernel, const Linear& a) {
  return a.splits == 1 ? 0 : a.splits * tiles_of(kernel, a) * kernel.rows * kTileOutputs;
}
inline int tile_counters(const TileKernel& kernel, const Linear& a) {
  return a.splits == 1 ? 0 : static_cast<int>(tiles_of(kernel, a));
}

// Splits with which a GPU is done first, if every multiprocessor computes one block after another: rounds of blocks,
// times a block's part of K, where each split costs 2 % more, for adding the parts up, and has at least four stages.
// An estimate, not yet measured on any device.
inline int tile_splits(const TileKernel& kernel, const Linear& a, int multiprocessors) {
  const int64_t tiles = tiles_of(kernel, a);
  const int most = std::clamp(((a.K - 1) / kernel.stage_k + 1) / 4, 1, 16);
  const auto cost = [&](int splits) {
    const int64_t rounds = (tiles * splits - 1) / multiprocessors + 1;
    return static_cast<double>(rounds) * (1.0 + 0.02 * (splits - 1)) / splits;
  };
  int best = 1;
  for (int splits = 2; splits <= most; ++splits)
    if (cost(splits) < cost(best)) best = splits;
  return best;
}

}  // namespace edge_awq
