// The index of each row's largest logit: a greedy decode loop needs no copy of the logits to the host.
//
// The bound it chases: a vocabulary of 128 k in fp32 is half a megabyte, 0.1 us of an H200's bandwidth, so latency.
// A row is dealt to `splits` blocks, whose threads take every n-th logit; the block that finishes last compares what
// all have found.
//
// A logit and its index become one number, so that comparing is one instruction and the order does not matter:
//
//   63           32 31                0
//   |  logit's key | ~index           |     the larger, the larger the logit; of equal ones the first
#include "kernel.h"
#include "keys.h"

namespace edge_awq {

struct Argmax {
  using Candidate = unsigned long long;
  static constexpr int kWarps = kArgmaxThreads / kWarpSize;

  struct Shared {
    Candidate warps[kWarps];
  };

  const ArgmaxArguments& a;
  const int row = blockIdx.x / a.splits, split = blockIdx.x % a.splits;

  __device__ __forceinline__ static Candidate candidate(float logit, int index) {
    return static_cast<Candidate>(key_of(logit)) << 32 | ~static_cast<uint32_t>(index);
  }

  __device__ __forceinline__ static int64_t token_of(Candidate best) {
    const bool is_broken = !is_finite_key(static_cast<uint32_t>(best >> 32));
    return static_cast<int64_t>(is_broken) << 32 | ~static_cast<uint32_t>(best);
  }

  __device__ __forceinline__ static Candidate better(Candidate a, Candidate b) { return a > b ? a : b; }

  // The best of all threads, for the first warp.
  __device__ __forceinline__ static Candidate best_of_block(Candidate best, Shared& shared) {
    best = best_of_warp(best);
    if (threadIdx.x % kWarpSize == 0) shared.warps[threadIdx.x / kWarpSize] = best;
    __syncthreads();
    if (threadIdx.x >= kWarpSize) return 0;
    return best_of_warp(threadIdx.x < kWarps ? shared.warps[threadIdx.x] : 0);
  }

  __device__ __forceinline__ static Candidate best_of_warp(Candidate best) {
    for (int mask = kWarpSize / 2; mask; mask /= 2) best = better(best, shuffle_xor(best, mask));
    return best;
  }

  __device__ __forceinline__ void run() const {
    Shared& shared = block_shared<Shared>();
    Candidate* const found = a.best + static_cast<int64_t>(row) * a.splits;
    const float* logits = a.logits + static_cast<int64_t>(row) * a.size;
    Candidate best = 0;
    for (int i = split * kArgmaxThreads + threadIdx.x; i < a.size; i += a.splits * kArgmaxThreads)
      best = better(best, candidate(logits[i], i));
    best = best_of_block(best, shared);
    if (threadIdx.x == 0) found[split] = best;
    if (!is_last_block(a.finished + row, a.splits)) return;
    best = 0;
    for (int i = threadIdx.x; i < a.splits; i += kArgmaxThreads) best = better(best, found[i]);
    best = best_of_block(best, shared);
    if (threadIdx.x == 0) a.tokens[row] = token_of(best);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kArgmaxThreads) argmax(const edge_awq::ArgmaxArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Argmax{a}.run();
  edge_awq::let_next_kernel_start();
}
