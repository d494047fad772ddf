// What single instructions of PTX compute, as its ISA says (8.5, chapter 9.7); sections are named.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "memory.h"

namespace ptx {

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

constexpr uint16_t kNanHalf = 0x7fff;
inline const float kNan = bits_as<float>(0x7fffffffu);

// "Floating Point Instructions": a NaN that an operation makes is canonical.
inline float canonical(float value) { return std::isnan(value) ? kNan : value; }
inline double canonical(double value) { return value; }

// ---- fp16 ----

inline float float_of(uint16_t half) { return static_cast<float>(bits_as<_Float16>(half)); }

inline uint16_t half_of(float value) {
  return std::isnan(value) ? kNanHalf : bits_as<uint16_t>(static_cast<_Float16>(value));
}

// "sub{.rnd}.f16x2". A difference of halves in fp32, rounded again, is rounded as if once: 24 >= 2 * 11 + 2 bits.
inline uint16_t subtract(uint16_t a, uint16_t b) { return half_of(float_of(a) - float_of(b)); }

// sum * 2^-48 to the nearest half, ties to even.
inline uint16_t half_of_fixed(__int128 sum, bool is_negative_zero) {
  const bool is_negative = sum < 0 || (sum == 0 && is_negative_zero);
  unsigned __int128 left = static_cast<unsigned __int128>(sum < 0 ? -sum : sum);
  int exponent = 1;  // of a half, biased; its last bit is worth 2^(exponent - 25), so 2^(exponent + 23) here
  while (left >> (exponent + 23) >= 2048) ++exponent;
  const int shift = exponent + 23;
  uint32_t kept = static_cast<uint32_t>(left >> shift);
  const unsigned __int128 rest = left - (static_cast<unsigned __int128>(kept) << shift);
  const unsigned __int128 middle = static_cast<unsigned __int128>(1) << (shift - 1);
  if (rest > middle || (rest == middle && kept % 2)) ++kept;
  if (kept == 2048) kept = 1024, ++exponent;
  const uint32_t bits = exponent >= 31 ? 0x7c00u : kept < 1024 ? kept : static_cast<uint32_t>(exponent) << 10 | (kept - 1024);
  return static_cast<uint16_t>(bits | (is_negative ? 0x8000u : 0u));
}

inline int64_t fixed_of(uint16_t half) { return static_cast<int64_t>(std::ldexp(float_of(half), 24)); }

// "fma.rn.f16x2": the exact product and sum, rounded once.
inline uint16_t multiply_add(uint16_t a, uint16_t b, uint16_t c) {
  const float x = float_of(a), y = float_of(b), z = float_of(c);
  if (!std::isfinite(x) || !std::isfinite(y) || !std::isfinite(z)) return half_of(x * y + z);
  const __int128 sum = static_cast<__int128>(fixed_of(a)) * fixed_of(b) + (static_cast<__int128>(fixed_of(c)) << 24);
  return half_of_fixed(sum, (std::signbit(x) != std::signbit(y)) && std::signbit(z));
}

template <class F, class... Pairs>
uint32_t in_both_halves(const F& function, Pairs... pairs) {
  const uint16_t low = function(static_cast<uint16_t>(pairs)...), high = function(static_cast<uint16_t>(pairs >> 16)...);
  return low | static_cast<uint32_t>(high) << 16;
}

// ---- approximations ----

inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

// As far off as the ISA allows, up or down by the argument's bits, so that nothing depends on being better.
inline float off_by(double exact, double most, float argument) {
  const bool is_up = bits_as<uint32_t>(argument) * 2654435761u >> 31;
  return flushed(static_cast<float>(exact * (1 + (is_up ? 1 : -1) * (most - 0x1p-24))));
}

// "ex2.approx.ftz.f32": 1 of zeros and subnormals; off by 2^-22 at most.
inline float power_of_two(float x) {
  x = flushed(x);
  if (std::isnan(x)) return kNan;
  if (x == 0 || std::isinf(x)) return x == 0 ? 1.0f : x > 0 ? x : 0.0f;
  return off_by(std::exp2(static_cast<double>(x)), 0x1p-22, x);
}

// "rcp.approx.ftz.f32": off by 2^-23 at most.
inline float reciprocal(float x) {
  x = flushed(x);
  if (std::isnan(x)) return kNan;
  if (x == 0 || std::isinf(x)) return 1.0f / x;
  return off_by(1.0 / static_cast<double>(x), 0x1p-23, x);
}

// "rcp.approx.ftz.f64": of the upper 32 bits alone, and of the result no more either.
inline double reciprocal_upper(double x) {
  const auto upper = [](double value) { return bits_as<double>(bits_as<uint64_t>(value) & 0xffffffff00000000ull); };
  const double result = upper(1.0 / upper(x));
  return std::fabs(result) < 0x1p-1022 ? std::copysign(0.0, result) : result;
}

// ---- comparisons and conversions ----

// "min", "max" of floats: the number where the other is NaN; +0 is above -0.
inline float larger(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return canonical(std::isnan(a) ? b : a);
  return a == b ? (std::signbit(a) ? b : a) : a > b ? a : b;
}
inline float smaller(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return canonical(std::isnan(a) ? b : a);
  return a == b ? (std::signbit(a) ? a : b) : a < b ? a : b;
}

// "cvt.rzi": cut to a whole number, the nearest there is. NaN is 0, but half the range where either side has 64 bits.
template <class To, class From>
To whole(From value) {
  using Limits = std::numeric_limits<To>;
  if (std::isnan(value))
    return sizeof(To) < 8 && sizeof(From) < 8 ? 0 : static_cast<To>(std::make_unsigned_t<To>{1} << (8 * sizeof(To) - 1));
  const From past = std::ldexp(From{1}, Limits::digits);
  return value >= past ? Limits::max() : value < static_cast<From>(Limits::min()) ? Limits::min() : static_cast<To>(value);
}

// ---- integers ----

template <class T>
T quotient(T a, T b) {
  if (b == 0) throw Fault("divides by zero");
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(-static_cast<std::make_unsigned_t<T>>(a));
  }
  return a / b;
}

template <class T>
T remainder(T a, T b) {
  return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) -
                        static_cast<std::make_unsigned_t<T>>(quotient(a, b)) * static_cast<std::make_unsigned_t<T>>(b));
}

// "shl", "shr": by more bits than there are is by all of them.
template <class T>
T shifted_left(T a, uint32_t by) {
  return by < 8 * sizeof(T) ? a << by : 0;
}
template <class T>
T shifted_right(T a, uint32_t by) {
  if (by < 8 * sizeof(T)) return a >> by;
  return a < 0 ? static_cast<T>(-1) : 0;
}

// "bfi": bits of a, `count` of them, in b from bit `first` on.
template <class T>
T inserted(T a, T b, uint32_t first, uint32_t count) {
  for (uint32_t i = 0; i < (count & 0xffu) && (first & 0xffu) + i < 8 * sizeof(T); ++i) {
    const T bit = T{1} << ((first & 0xffu) + i);
    b = (a >> i & 1) ? b | bit : b & ~bit;
  }
  return b;
}

// "prmt": a digit of the selection names a byte of {b, a}; its highest bit, that byte's sign in all bits.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selection) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selection >> (4 * i) & 15u;
    const auto byte = static_cast<uint8_t>(bytes >> (8 * (digit & 7u)));
    result |= static_cast<uint32_t>(digit & 8u ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}

// "lop3": bit (a, b, c) of the table, 4 a + 2 b + c.
inline uint32_t looked_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (table >> i & 1u) result |= (i & 4u ? a : ~a) & (i & 2u ? b : ~b) & (i & 1u ? c : ~c);
  return result;
}

// "atom.inc": up to b, then 0.
inline uint32_t incremented(uint32_t old, uint32_t b) { return old >= b ? 0 : old + 1; }
inline uint32_t increased(uint32_t old, uint32_t b) { return old + b; }

}  // namespace ptx
