// A prompt's matmul in two launches: W becomes halves in the workspace, and the fp16 kernels multiply by these.
//
// A weight is then rounded to fp16, by up to 2^-11 of it, where the kernels for few bits have it exactly. Each launch
// makes all of W again, 2 bytes a weight, which pays off where so many rows are multiplied that fewer instructions per
// weight make up for it; see dequantize_from().
#pragma once

#include <algorithm>

#include "../embedding/plan.h"
#include "../fp16_matmul/plan.h"
#include "launch.h"

namespace edge_awq {

constexpr int64_t kMostDequantizedBytes = int64_t{1} << 30;  // of W as halves; larger matrices stay as they are

// Of a multiprocessor, per cycle: tensor-core products of 16 x 8 x 16 with sums in fp32, and bytes of device memory.
// One GPU of each kind, from its published peaks; of mma.sync on sm_90, which does not reach them, an estimate.
struct Roof {
  int compute_capability;
  double products, bytes;
};
constexpr Roof kRoofs[] = {
    {80, 0.5, 10.2},    // A100: 312 TFLOP/s, 1555 GB/s, 108 multiprocessors at 1.41 GHz
    {86, 0.125, 6.7},   // RTX 3090: 71 TFLOP/s, 936 GB/s, 82 at 1.70
    {87, 0.5, 9.8},     // AGX Orin 64: 42 TFLOP/s, 204.8 GB/s, 16 at 1.30
    {89, 0.125, 3.1},   // RTX 4090: 165 TFLOP/s, 1008 GB/s, 128 at 2.52
    {90, 0.625, 18.4},  // H200: 4800 GB/s, 132 at 1.98
};

// Instructions per weight and 64 rows of x in the widest tiles, as tests/plugins/test_cubins.py counts them; the lanes
// that a multiprocessor gives one to per cycle; and how many of these a kernel gets at best, an estimate.
constexpr double kTileInstructions4 = 6.2, kTileInstructions8 = 5.1, kTileInstructions16 = 3.1;
constexpr double kIssuedLanes = 4 * 32, kIssuedShare = 0.8;

// Cycles per weight and 64 rows: those of the tensor cores or of the instructions, which run side by side.
inline double tile_cycles(const Roof& roof, double instructions) {
  constexpr double kProducts = 64.0 / 8 / (16 * 16);
  return std::max(kProducts / roof.products, instructions / (kIssuedLanes * kIssuedShare));
}

// From how many rows on two launches are predicted to be quicker, or 0 if never: where what is saved is as much as it
// takes to read W, to write it as halves and to read these. Not yet measured on any device.
inline int dequantize_from(int compute_capability, int bits) {
  const Roof* roof = nullptr;
  for (const Roof& each : kRoofs)
    if (each.compute_capability <= compute_capability) roof = &each;
  if (!roof) return 0;
  const double saved = tile_cycles(*roof, bits == 4 ? kTileInstructions4 : kTileInstructions8) -
                       tile_cycles(*roof, kTileInstructions16);
  return saved <= 0 ? 0 : static_cast<int>((bits / 8.0 + 2 + 2) / roof->bytes / saved * 64) + 1;
}

inline int64_t dequantized_bytes(const Linear& a) { return 2 * static_cast<int64_t>(a.N) * a.K; }

// Whether `a` takes two launches. `from` is the op's attribute: a number of rows, 0 for never, -1 as predicted.
inline bool dequantizes(const Linear& a, int from, int compute_capability, int bits) {
  if (from < 0) from = dequantize_from(compute_capability, bits);
  return from > 0 && a.rows >= from && a.rows > kGemvMaxRows && dequantized_bytes(a) <= kMostDequantizedBytes;
}

// `a` with W as halves.
inline Fp16MatMulArguments with_halves(const Linear& a, const Half* weight, int multiprocessors) {
  Fp16MatMulArguments made{};
  static_cast<Linear&>(made) = a;
  made.weight = weight;
  made.splits = 1;
  made.splits = best_splits(made, multiprocessors);
  return made;
}

// All of W becomes halves.
template <class Arguments>
EmbeddingArguments unpacking(const Arguments& a, Half* halves, int bits) {
  EmbeddingArguments made{};
  made.table = a.qweight;
  made.scales = a.scales;
  made.zero_points = a.zero_points;
  made.y = halves;
  made.rows = made.vocabulary = a.N;
  made.size = a.K;
  made.bits = bits;
  made.group_size = a.group_size;
  return made;
}

// Both launches. The halves lie in the workspace, before what splits leave for each other; they do depend on the kernel
// before, unlike all other weights, so the second launch may not begin while the first one ends.
template <class Arguments>
std::string launch_dequantized(const Arguments& a, int bits, int multiprocessors, void* workspace, void* stream) {
  Half* const halves = static_cast<Half*>(workspace);
  Fp16MatMulArguments product = with_halves(a, halves, multiprocessors);
  product.partial = reinterpret_cast<float*>(static_cast<char*>(workspace) + dequantized_bytes(a));
  Launch planned = plan(product);  // refused before anything is launched
  planned.is_dependent = false;
  if (!planned.refusal.empty()) return planned.refusal;
  const EmbeddingArguments first = unpacking(a, halves, bits);
  if (std::string reason = launch(plan(first), first, stream); !reason.empty()) return reason;
  return launch(planned, product, stream);
}

}  // namespace edge_awq
