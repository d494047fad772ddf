// Everything a kernel asks of the machine beyond plain C++, as named functions with two bodies: PTX for a GPU, and C++
// over fibers.h for a CPU. The CPU bodies are references: same results, bit for bit unless a comment says otherwise.
#pragma once

#include "memory.h"
#include "numbers.h"

namespace edge_awq {

// ---- threads ----

// The value that a lane passed in.
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffu, value, lane);
#else
  return fibers::Exchange<T>(value)[lane];
#endif
}

// The value that the lane whose number differs in the bits of `mask` passed in.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
#ifdef __CUDACC__
  return __shfl_xor_sync(0xffffffffu, value, mask);
#else
  return fibers::Exchange<T>(value)[(threadIdx.x % kWarpSize) ^ mask];
#endif
}

// Whether this block is the last of `blocks` to come here; it then sees what the others wrote before. The counter
// starts at zero and is zero again afterwards.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
#ifdef __CUDACC__
  __threadfence();
  __syncthreads();
  const bool last = __syncthreads_or(threadIdx.x == 0 && atomicInc(counter, blocks - 1) == blocks - 1);
  __threadfence();
  return last;
#else
  bool& last = fibers::state.is_last;
  __syncthreads();
  if (threadIdx.x == 0) last = fibers::arrive(counter, blocks);
  __syncthreads();
  return last;
#endif
}

// Programmatic dependent launch (sm_90 on): returns once everything the previous kernel wrote is visible. What does
// not depend on it, such as weights, is best asked for before.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ... and from here on the next kernel may start, up to its own wait.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- tensor cores ----

// d += a @ b with a [16, 16], b [16, 8] in fp16 and d [16, 8] in fp32, spread over the lanes of a warp. With
// row = lane / 4 and pair = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   a[i]: row (row + 8 * (i % 2)), k (2 * pair + 8 * (i / 2)) and the next
//   b[i]: k (2 * pair + 8 * i) and the next, column row
//   d[i]: row (row + 8 * (i / 2)), column (2 * pair + i % 2)
// A GPU adds the exact products in an order of its own and cuts the sum to fp32, where this rounds after each.
// Volatile, so that no compiler moves it to where its result is needed: the lanes there may not be all.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const HalfPair (&a)[4], const HalfPair (&b)[2]) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  struct Fragment {
    HalfPair a[4], b[2];
  };
  const fibers::Exchange<Fragment> lanes({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int lane = threadIdx.x % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; k += 2) {
      const HalfPair left = lanes[4 * row + k % 8 / 2].a[i / 2 + 2 * (k / 8)];
      const HalfPair right = lanes[4 * column + k % 8 / 2].b[k / 8];
      d[i] = std::fma(to_float(low(left)), to_float(low(right)), d[i]);
      d[i] = std::fma(to_float(high(left)), to_float(high(right)), d[i]);
    }
  }
#endif
}

}  // namespace edge_awq
