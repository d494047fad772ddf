// What the attention kernels share: rotary positions, and how a product of query and key becomes a score.
#pragma once

#include "../common/device.h"
#include "kernel.h"

namespace edge_awq {

constexpr float kNothingSeen = -1e30f;  // a maximum below any score, and finite: its difference to itself is 0
constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ int at_most(int value, int most) { return value < most ? value : most; }
__device__ __forceinline__ int at_least(int value, int least) { return value > least ? value : least; }

// How many tokens there were before. What cannot be counts as a full cache, where nothing is written: an engine's
// builder measures with whatever its memory holds.
__device__ __forceinline__ int past_tokens(const DecodeAttentionArguments& a) {
  using Unsigned = unsigned long long;  // in which what is below zero is too large: one comparison
  const Unsigned past = static_cast<Unsigned>(load_global(a.past_length));
  return past < static_cast<Unsigned>(a.capacity) ? static_cast<int>(past) : a.capacity;
}

// Value d of a head, rotated to a position: pairs lie rotary_size / 2 apart.
__device__ __forceinline__ float rotated(const DecodeAttentionArguments& a, const Half* head, int d, int position) {
  const int half = a.rotary_size / 2;
  if (d >= 2 * half) return to_float(load_global(head + d));
  const int64_t angle = static_cast<int64_t>(position) * half + d % half;
  const float partner = to_float(load_global(head + (d < half ? d + half : d - half))) * load_global(a.sines + angle);
  return multiply_add(to_float(load_global(head + d)), load_global(a.cosines + angle), d < half ? -partner : partner);
}

// Scores between -softcap and softcap; of scores and results times log2 e. 1 - 2 / (1 + e^2x) is tanh x, within
// 2^-21 of 1.
__device__ __forceinline__ float capped(float score, float softcap) {
  const float cap = softcap * kLog2E;
  const float growth = power_of_two(score * (2.0f * kLog2E * reciprocal(cap)));
  return multiply_add(-2.0f * cap, reciprocal(1.0f + growth), cap);
}

}  // namespace edge_awq
