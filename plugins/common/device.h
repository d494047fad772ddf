// Everything a kernel asks of the machine beyond plain C++, as named functions with two bodies: PTX for a GPU, and C++
// over fibers.h for a CPU. The CPU bodies are references: same results, bit for bit unless a comment says otherwise.
#pragma once

#include "half.h"

#ifndef __CUDACC__
#include <cmath>

#include "fibers.h"
#endif

namespace edge_awq {

constexpr int kWarpSize = 32;

// 16 bytes: what one lane moves best.
struct alignas(16) Vector {
  uint32_t word[4];
};

// ---- numbers ----

__device__ __forceinline__ float to_float(Half value) {
#ifdef __CUDACC__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  return float_from_half(value);
#endif
}

__device__ __forceinline__ Half to_half(float value) {
#ifdef __CUDACC__
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  return half_from_float(value);
#endif
}

// a * b + c, rounded once.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
#ifdef __CUDACC__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

__device__ __forceinline__ uint32_t as_bits(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  return bits_from_float(value);
#endif
}

__device__ __forceinline__ float as_float(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return float_from_bits(bits);
#endif
}

__device__ __forceinline__ float minus_infinity() { return as_float(0xff800000u); }

// The larger number; a NaN only if both are.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

// Rounded to nearest.
__device__ __forceinline__ float square_root(float value) {
#ifdef __CUDACC__
  return __fsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

// 2^x. A GPU is off by up to 2^-22 of it.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// A GPU is off by up to 2^-23 of it.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDACC__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

__device__ __forceinline__ float error_function(float x) { return erff(x); }

__device__ __forceinline__ HalfPair pair(Half low, Half high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

__device__ __forceinline__ Half low(HalfPair value) { return {static_cast<uint16_t>(value)}; }

__device__ __forceinline__ Half high(HalfPair value) { return {static_cast<uint16_t>(value >> 16)}; }

// a - b in both halves.
__device__ __forceinline__ HalfPair subtract(HalfPair a, HalfPair b) {
#ifdef __CUDACC__
  HalfPair result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  return pair(to_half(to_float(low(a)) - to_float(low(b))), to_half(to_float(high(a)) - to_float(high(b))));
#endif
}

// a * b + c in both halves, rounded once. On a CPU the sum passes through a float: exact where the float is.
__device__ __forceinline__ HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) {
#ifdef __CUDACC__
  HalfPair result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return pair(to_half(std::fma(to_float(low(a)), to_float(low(b)), to_float(low(c)))),
              to_half(std::fma(to_float(high(a)), to_float(high(b)), to_float(high(c)))));
#endif
}

// ---- bits ----

// (a & b) | c in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return (a & b) | c;
#endif
}

// Four of the eight bytes of a (0 to 3) and b (4 to 7); digit i of the selection says which becomes byte i.
template <uint32_t kSelection>
__device__ __forceinline__ uint32_t select_bytes(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __byte_perm(a, b, kSelection);
#else
  const uint32_t words[2] = {a, b};
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t source = kSelection >> 4 * i & 7u;
    result |= (words[source / 4] >> source % 4 * 8 & 0xffu) << 8 * i;
  }
  return result;
#endif
}

// The low halves of a and b as a pair.
__device__ __forceinline__ HalfPair low_halves(HalfPair a, HalfPair b) { return select_bytes<0x5410>(a, b); }

// The high halves of a and b as a pair.
__device__ __forceinline__ HalfPair high_halves(HalfPair a, HalfPair b) { return select_bytes<0x7632>(a, b); }

// The same value, whose origin the compiler forgets: it neither computes it again in a loop that needs it, nor keeps it
// through one for the sake of what comes after.
template <class T>
__device__ __forceinline__ T opaque(T value) {
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
#endif
  return value;
}

// ---- memory ----

// 16 bytes that are read once by one warp (weights): through the read-only path, not kept in L1.
__device__ __forceinline__ Vector load_streamed(const void* address) {
#ifdef __CUDACC__
  Vector value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "l"(address));
  return value;
#else
  fibers::state.streamed_bytes += sizeof(Vector);
  return *static_cast<const Vector*>(address);
#endif
}

// A value no kernel ever writes (scales, zero points): through the read-only path, kept in L1 for the neighbours.
template <class T>
__device__ __forceinline__ T load_constant(const T* address) {
#ifdef __CUDACC__
  return __ldg(address);
#else
  return *address;
#endif
}

template <>
__device__ __forceinline__ Half load_constant<Half>(const Half* address) {
  return {load_constant(&address->bits)};
}

template <>
__device__ __forceinline__ Vector load_constant<Vector>(const Vector* address) {
#ifdef __CUDACC__
  const uint4 value = __ldg(reinterpret_cast<const uint4*>(address));
  return {value.x, value.y, value.z, value.w};
#else
  return *address;
#endif
}

// A small value in 32 bits, nothing to be done before it arrives; on its way its line of 128 bytes comes to L2.
template <class T>
__device__ __forceinline__ uint32_t load_with_line(const T* address) {
  static_assert(sizeof(T) <= 2);
#ifdef __CUDACC__
  uint32_t value;
  if constexpr (sizeof(T) == 2) {
    asm volatile("{.reg .u16 half;\n ld.global.nc.L2::128B.u16 half, [%1];\n cvt.u32.u16 %0, half;}"
                 : "=r"(value)
                 : "l"(address));
  } else {
    asm volatile("ld.global.nc.L2::128B.u8 %0, [%1];" : "=r"(value) : "l"(address));
  }
  return value;
#else
  T value = *address;
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
#endif
}

// The block's shared memory, as a T. One T per kernel.
template <class T>
__device__ __forceinline__ T& block_shared() {
#ifdef __CUDACC__
  __shared__ T memory;
  return memory;
#else
  static_assert(sizeof(T) <= fibers::kStaticSharedBytes);
  return *reinterpret_cast<T*>(fibers::state.shared);
#endif
}

// The block's dynamic shared memory: as many bytes as its launch asks for.
__device__ __forceinline__ Vector* dynamic_shared([[maybe_unused]] size_t bytes) {
#ifdef __CUDACC__
  extern __shared__ Vector dynamic_memory[];
  return dynamic_memory;
#else
  if (bytes > fibers::state.dynamic_bytes) fibers::state.overrun = bytes;
  return reinterpret_cast<Vector*>(fibers::state.shared + fibers::kStaticSharedBytes);
#endif
}

// What lies at an address in shared memory. On a CPU, accesses through these two are checked for bank conflicts.
template <class T>
__device__ __forceinline__ T load_shared(const T* address) {
#ifndef __CUDACC__
  fibers::note_access(address, sizeof(T));
#endif
  return *address;
}

template <class T>
__device__ __forceinline__ void store_shared(T* address, const T& value) {
#ifndef __CUDACC__
  fibers::note_access(address, sizeof(T));
#endif
  *address = value;
}

// Four 8 x 8 matrices of halves. Lane 8 * i + r passes where row r of matrix i is; word i of what lane 4 * r + c gets
// is pair c of row r of matrix i.
__device__ __forceinline__ Vector load_matrices(const Vector* row) {
#ifdef __CUDACC__
  Vector value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
  return value;
#else
  const fibers::Exchange<Vector> rows(load_shared(row));
  const int lane = threadIdx.x % kWarpSize;
  Vector value;
  for (int i = 0; i < 4; ++i) value.word[i] = rows[8 * i + lane / 4].word[lane % 4];
  return value;
#endif
}

// The same, each matrix turned: word i of what lane 4 * r + c gets is column r of matrix i, of rows 2 * c and the next.
__device__ __forceinline__ Vector load_matrices_transposed(const Vector* row) {
#ifdef __CUDACC__
  Vector value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
  return value;
#else
  const fibers::Exchange<Vector> rows(load_shared(row));
  const int r = threadIdx.x % kWarpSize / 4, c = threadIdx.x % 4;
  Vector value;
  for (int i = 0; i < 4; ++i) {
    const HalfPair upper = rows[8 * i + 2 * c].word[r / 2], lower = rows[8 * i + 2 * c + 1].word[r / 2];
    value.word[i] = r % 2 ? high_halves(upper, lower) : low_halves(upper, lower);
  }
  return value;
#endif
}

// ---- copies to shared memory, which nobody waits for until they are needed ----

// 16 bytes from global memory, or zeros; past L1, and with what follows in their line of 128 bytes brought to L2.
__device__ __forceinline__ void copy_to_shared(Vector* to, const void* from, bool or_zeros) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(from), "r"(or_zeros ? 0 : 16)
               : "memory");
#else
  fibers::note_access(to, sizeof(Vector));
  fibers::copy(to, or_zeros ? nullptr : from, sizeof(Vector));
#endif
}

// The same of what is read once (weights).
__device__ __forceinline__ void copy_streamed_to_shared(Vector* to, const void* from, bool or_zeros) {
#ifndef __CUDACC__
  if (!or_zeros) fibers::state.streamed_bytes += sizeof(Vector);
#endif
  copy_to_shared(to, from, or_zeros);
}

// Makes this thread's copies since the last time a group ...
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  fibers::commit_copies();
#endif
}

// ... and waits until all but the last kPending of its groups have landed.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  fibers::wait_for_copies(kPending);
#endif
}

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
  if (threadIdx.x == 0) *counter = (*counter + 1) % blocks;  // blocks run one after another
  __syncthreads();
  return *counter == 0;
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
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const HalfPair (&a)[4], const HalfPair (&b)[2]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
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
