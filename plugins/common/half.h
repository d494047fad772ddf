// Half-precision numbers as bits: nothing here needs CUDA's headers, neither under NVRTC nor under a host compiler.
#pragma once

#ifdef __CUDACC_RTC__  // NVRTC has no standard headers
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using size_t = decltype(sizeof 0);
#else
#include <cstdint>
#include <cstring>
#endif

namespace edge_awq {

// IEEE binary16.
struct Half {
  uint16_t bits;
};

// Two halves in one register, the low one first.
using HalfPair = uint32_t;

#ifndef __CUDACC__
inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_half(Half half) {
  const uint32_t sign = (half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  if (magnitude < 0x400u) {                                                                           // subnormal
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return float_from_bits(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

// Rounds to nearest, ties to even.
inline Half half_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7fffu)};   // NaN, the one a GPU returns
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504, or infinite
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded
    const uint32_t shifted = bits_from_float(float_from_bits(magnitude) + 0.5f);
    return {static_cast<uint16_t>(sign | (shifted - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - ((127u - 15u) << 10)))};
}
#endif

}  // namespace edge_awq
