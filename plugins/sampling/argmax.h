// Where the largest of many logits is, found by several blocks.
//
// A row is dealt to `splits` blocks, whose threads take every n-th logit; the block that finishes last compares what
// all have found.
//
// A logit and its index become one number, so that comparing is one instruction and the order does not matter:
//
//   63           32 31                0
//   |  logit's key | ~index           |     the larger, the larger the logit; of equal ones the first
#pragma once

#include "keys.h"

namespace edge_awq {

// By blocks of kThreads; `warps` is shared memory for one number of each warp.
template <int kThreads>
struct Argmax {
  using Candidate = unsigned long long;
  static constexpr int kWarps = kThreads / kWarpSize;

  Candidate* warps;

  // A row's first largest logit, or its first NaN; `found` has a place for each split. Only in the first thread of the
  // block that finishes last it is the answer; returns whether this is that block.
  __device__ __forceinline__ bool find(const float* logits, int size, int split, int splits, Candidate* found,
                                       unsigned* finished, Candidate& best) const {
    best = 0;
    for (int i = split * kThreads + threadIdx.x; i < size; i += splits * kThreads)
      best = better(best, candidate(logits[i], i));
    best = best_of_block(best);
    if (threadIdx.x == 0) found[split] = best;
    if (!is_last_block(finished, splits)) return false;
    best = 0;
    for (int i = threadIdx.x; i < splits; i += kThreads) best = better(best, found[i]);
    best = best_of_block(best);
    return true;
  }

  // Its index, and 2^32 more if it is not finite.
  __device__ __forceinline__ static int64_t token_of(Candidate best) {
    const bool is_broken = !is_finite_key(static_cast<uint32_t>(best >> 32));
    return static_cast<int64_t>(is_broken) << 32 | ~static_cast<uint32_t>(best);
  }

 private:
  __device__ __forceinline__ static Candidate candidate(float logit, int index) {
    return static_cast<Candidate>(key_of(logit)) << 32 | ~static_cast<uint32_t>(index);
  }

  __device__ __forceinline__ static Candidate better(Candidate a, Candidate b) { return a > b ? a : b; }

  // The best of all threads, for the first warp.
  __device__ __forceinline__ Candidate best_of_block(Candidate best) const {
    best = best_of_warp(best);
    if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = best;
    __syncthreads();
    if (threadIdx.x >= kWarpSize) return 0;
    return best_of_warp(threadIdx.x < kWarps ? warps[threadIdx.x] : 0);
  }

  __device__ __forceinline__ static Candidate best_of_warp(Candidate best) {
    for (int mask = kWarpSize / 2; mask; mask /= 2) best = better(best, shuffle_xor(best, mask));
    return best;
  }
};

}  // namespace edge_awq
