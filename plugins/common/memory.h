// Loads, stores and copies beyond plain C++, each function with two bodies; see device.h.
#pragma once

#include "numbers.h"

namespace edge_awq {

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
  fibers::note_constant(address, sizeof(Vector));
  return *static_cast<const Vector*>(address);
#endif
}

// 16 bytes that several warps of a block may read, and that the kernel may have written itself (a KV cache).
__device__ __forceinline__ Vector load_vector(const void* address) {
#ifndef __CUDACC__
  fibers::state.streamed_bytes += sizeof(Vector);
  fibers::note_block_read(address, sizeof(Vector));
#endif
  return *static_cast<const Vector*>(address);
}

// A smaller number of that kind (the scale of a key or value).
template <class T>
__device__ __forceinline__ T load_in_block(const T* address) {
#ifndef __CUDACC__
  fibers::note_block_read(address, sizeof(T));
#endif
  return *address;
}

// A value that several threads or blocks read, and one that is written. On a CPU each place can be counted, once.
template <class T>
__device__ __forceinline__ T load_global(const T* address) {
#ifndef __CUDACC__
  fibers::note_read(address, sizeof(T));
#endif
  return *address;
}

template <class T>
__device__ __forceinline__ void store_global(T* address, const T& value) {
#ifndef __CUDACC__
  fibers::note_written(address, sizeof(T));
  if (fibers::races::is_there(address, &value, sizeof(T))) return;
#endif
  *address = value;
}

// A value no kernel ever writes (scales, zero points): through the read-only path, kept in L1 for the neighbours.
template <class T>
__device__ __forceinline__ T load_constant(const T* address) {
#ifdef __CUDACC__
  return __ldg(address);
#else
  fibers::note_constant(address, sizeof(T));
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
  fibers::note_constant(address, sizeof(Vector));
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
  fibers::note_constant(address, sizeof(T));
  T value = *address;
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
#endif
}

// The block's shared memory, as a T. One T per kernel. Whatever T is, 16 bytes of it may be read at once.
template <class T>
__device__ __forceinline__ T& block_shared() {
#ifdef __CUDACC__
  __shared__ alignas(16) T memory;
  return memory;
#else
  static_assert(sizeof(T) <= fibers::kStaticSharedBytes);
  fibers::state.static_bytes = sizeof(T);
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

// Adds to a word in shared memory that other threads add to; returns what was there before.
__device__ __forceinline__ uint32_t add_shared(uint32_t* address, uint32_t value) {
#ifdef __CUDACC__
  return atomicAdd(address, value);
#else
  return fibers::one_at_a_time(address, [&] { return (*address += value) - value; });
#endif
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

// The same of what is read once (weights), or once per block (a KV cache).
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

}  // namespace edge_awq
