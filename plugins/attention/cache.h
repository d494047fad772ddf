// How keys and values lie in the cache, as the attention kernels are told it: in halves, or in bytes with a scale.
//
//   HalfCache   fp16  [kv_num_heads, capacity, head_size]
//   ByteCache   uint8 [kv_num_heads, capacity, head_size]   128 + round(x / scale), 1 to 255
//               fp32  [kv_num_heads, capacity]              scale = max |x| / 127 of the head and token
//
// A byte put below 0x64 is the half 1024 + byte, and 1152 is taken off again, exactly; two bytes at a time:
//
//   keys      word d3 d2 d1 d0                       ->   64 d1 64 d0  and  64 d3 64 d2
//   values    words a3 a2 a1 a0 and b3 b2 b1 b0 of   ->   b1 a1 b0 a0  and  b3 a3 b2 a2
//             two keys                               ->   64 b0 64 a0, 64 b1 64 a1, 64 b2 64 a2, 64 b3 64 a3
//
// What products see are whole numbers of up to 127. A key's scale joins its score; a value's scale joins its softmax
// weight, which is rounded to fp16 only then. Scales are fp32: fp16 would save 1.5 % of the cache at head size 128, but
// has fewer bits for what is below 2^-14.
#pragma once

#include "scores.h"

namespace edge_awq {

struct HalfCache {
  using Element = Half;
  static constexpr bool kScaled = false;
  static constexpr int kLaneValues = 8;  // in 16 bytes
  static constexpr int kWordValues = 2;

  // Pairs i and i + 1 of the values, in order; i is even.
  __device__ __forceinline__ static void unpack(const Vector& loaded, int i, HalfPair (&pairs)[2]) {
    pairs[0] = loaded.word[i];
    pairs[1] = loaded.word[i + 1];
  }

  // Words of two keys as pairs over the keys, a pair for each value.
  __device__ __forceinline__ static void pair_keys(uint32_t first, uint32_t second, HalfPair (&pairs)[2]) {
    pairs[0] = low_halves(first, second);
    pairs[1] = high_halves(first, second);
  }

  __device__ __forceinline__ static float load_scale(const float*, bool) { return 1.0f; }

  // A softmax weight as the second product takes it, and as it is added up.
  struct Weight {
    Half operand;
    __device__ __forceinline__ float counted() const { return to_float(operand); }
  };
  __device__ __forceinline__ static Weight weigh(float exponent, float) { return {to_half(power_of_two(exponent))}; }
};

// The half 1024 + byte of two bytes minus 1152.
__device__ __forceinline__ HalfPair without_bias(HalfPair raised) { return subtract(raised, 0x64806480u); }

struct ByteCache {
  using Element = uint8_t;
  static constexpr bool kScaled = true;
  static constexpr int kLaneValues = 16;
  static constexpr int kWordValues = 4;

  __device__ __forceinline__ static void unpack(const Vector& loaded, int i, HalfPair (&pairs)[2]) {
    const uint32_t word = loaded.word[i / 2];
    pairs[0] = without_bias(select_bytes<0x4140>(word, 0x64646464u));
    pairs[1] = without_bias(select_bytes<0x4342>(word, 0x64646464u));
  }

  __device__ __forceinline__ static void pair_keys(uint32_t first, uint32_t second, HalfPair (&pairs)[4]) {
    const uint32_t words[2] = {select_bytes<0x5140>(first, second), select_bytes<0x7362>(first, second)};
    for (int i = 0; i < 2; ++i) {
      pairs[2 * i] = without_bias(select_bytes<0x4140>(words[i], 0x64646464u));
      pairs[2 * i + 1] = without_bias(select_bytes<0x4342>(words[i], 0x64646464u));
    }
  }

  __device__ __forceinline__ static float load_scale(const float* scale, bool exists) {
    return exists ? load_in_block(scale) : 0.0f;
  }

  // 64 times the weight, in the sum too: times the scale of the largest value that is a half, 65504 / 127, it is still
  // one, and small values keep six bits more.
  struct Weight {
    Half operand;
    float weight;
    __device__ __forceinline__ float counted() const { return weight; }
  };
  __device__ __forceinline__ static Weight weigh(float exponent, float scale) {
    const float weight = power_of_two(exponent + 6.0f);
    return {to_half(weight * scale), weight};
  }
};

// Value d of one token's key and value of a head join a HalfCache.
__device__ __forceinline__ void append_value(const DecodeAttentionArguments& a, int token, int head, int position,
                                             int d) {
  const int64_t source = static_cast<int64_t>(token) * a.kv_stride + head * a.head_size;
  const int64_t place = (static_cast<int64_t>(head) * a.capacity + position) * a.head_size + d;
  store_global(static_cast<Half*>(a.key_cache) + place, to_half(rotated(a, a.k + source, d, position)));
  store_global(static_cast<Half*>(a.value_cache) + place, load_global(a.v + source + d));
}

// Below 2^-120 a row counts as zeros: 127 over its maximum might not be finite.
constexpr uint32_t kSmallestMaximum = 0x03800000u, kInfinity = 0x7f800000u, kNaN = 0x7fc00000u;

// One token's keys or values of a head join a ByteCache, by a warp. An infinity or NaN among them makes the scale NaN.
template <int kMostValues>
__device__ __forceinline__ void append_row(const DecodeAttentionArguments& a, int token, int head, int position,
                                           bool is_value) {
  constexpr int kWords = (kMostValues + 127) / 128;  // of a lane
  const int lane = threadIdx.x % kWarpSize;
  const Half* const source =
      (is_value ? a.v : a.k) + static_cast<int64_t>(token) * a.kv_stride + head * a.head_size;
  float values[kWords][4] = {};
  uint32_t maximum = 0;  // as bits: there NaN is larger than infinity
  for (int n = 0; n < kWords; ++n)
    for (int i = 0; i < 4; ++i) {
      const int d = 128 * n + 4 * lane + i;
      if (d >= a.head_size) continue;
      values[n][i] = is_value ? to_float(load_global(source + d)) : rotated(a, source, d, position);
      const uint32_t magnitude = as_bits(values[n][i]) & 0x7fffffffu;
      if (magnitude > maximum) maximum = magnitude;
    }
  for (int mask = 1; mask < kWarpSize; mask *= 2) {
    const uint32_t other = shuffle_xor(maximum, mask);
    if (other > maximum) maximum = other;
  }
  const bool is_zero = maximum < kSmallestMaximum;
  const float inverse = is_zero ? 0.0f : 127.0f * reciprocal(as_float(maximum));
  const int64_t row = static_cast<int64_t>(head) * a.capacity + position;
  for (int n = 0; n < kWords; ++n) {
    const int d = 128 * n + 4 * lane;
    if (d >= a.head_size) continue;
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i)  // 1.5 * 2^23 + 128 + x / scale has 128 + round(x / scale) as its low byte
      word |= (as_bits(multiply_add(values[n][i], inverse, 12583040.0f)) & 0xffu) << 8 * i;
    uint8_t* const cache = static_cast<uint8_t*>(is_value ? a.value_cache : a.key_cache);
    store_global(reinterpret_cast<uint32_t*>(cache + row * a.head_size + d), word);
  }
  const float scale = is_zero ? 0.0f : as_float(maximum < kInfinity ? maximum : kNaN) * (1.0f / 127.0f);
  if (lane == 0) store_global((is_value ? a.value_scales : a.key_scales) + row, scale);
}

}  // namespace edge_awq
