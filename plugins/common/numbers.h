// Numbers and bits beyond plain C++, each function with two bodies; see device.h.
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

// One of the few things in 64 bits: a GPU takes its time.
__device__ __forceinline__ double natural_logarithm(double x) {
#ifdef __CUDACC__
  return log(x);
#else
  return std::log(x);
#endif
}

// The upper 64 bits of a product of 128.
__device__ __forceinline__ unsigned long long high_product(unsigned long long a, unsigned long long b) {
#ifdef __CUDACC__
  return __umul64hi(a, b);
#else
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

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

#ifndef __CUDACC__
// a * b + c, rounded once: on its way through a float, a sum that does not fit one takes the neighbour that is odd, and
// so falls to the right side when it is rounded again.
inline Half multiply_add(Half a, Half b, Half c) {
  const double sum = std::fma(static_cast<double>(float_from_half(a)), float_from_half(b), float_from_half(c));
  float rounded = static_cast<float>(sum);
  if (static_cast<double>(rounded) != sum && bits_from_float(rounded) % 2 == 0)
    rounded = std::nextafter(rounded, rounded < sum ? HUGE_VALF : -HUGE_VALF);
  return half_from_float(rounded);
}
#endif

// a * b + c in both halves, rounded once.
__device__ __forceinline__ HalfPair multiply_add(HalfPair a, HalfPair b, HalfPair c) {
#ifdef __CUDACC__
  HalfPair result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return pair(multiply_add(low(a), low(b), low(c)), multiply_add(high(a), high(b), high(c)));
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

}  // namespace edge_awq
