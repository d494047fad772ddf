// 4-bit weights on their way to the tensor cores.
//
// A 32-bit word holds k0 .. k7, low nibble first. ANDed and ORed into the mantissa of 1024.0 = 0x6400 (or, four bits
// higher, of 1024 + 16 q), two nibbles that lie 16 bits apart become a pair of exact halves:
//
//   word              k7 k6 k5 k4 k3 k2 k1 k0
//   & 0x000f000f               k4          k0    ->  (k0, k4) + 1024            - (1024 + zero)
//   & 0x00f000f0            k5          k1       -> ((k1, k5) * 16 + 1024) / 16 - (  64 + zero)
//   the same of word >> 8                        ->  (k2, k6) and (k3, k7)
//
// so the zero point costs nothing, and q - zero is exact. Without the OR the nibbles are halves below 2^-14 as they are,
// q * 2^-24 or 16 times that, and tensor cores multiply such halves exactly, too: two instructions less per pair, for
// those who deal with zero points elsewhere.
#pragma once

#include "../common/tile.h"
#include "kernel.h"

namespace edge_awq {

// Eight weights minus their zero point: (k0, k4), (k2, k6), (k1, k5), (k3, k7).
__device__ __forceinline__ void unpack_int4(uint32_t word, uint32_t zero, HalfPair (&weights)[4]) {
  const HalfPair from_low = 0x64006400u + zero * 0x00010001u;   // 1024 + zero
  const HalfPair from_high = 0xd400d400u + zero * 0x00100010u;  // -(64 + zero)
  const HalfPair sixteenth = 0x2c002c00u;
  for (int i = 0; i < 2; ++i, word >>= 8) {
    weights[i] = subtract(and_or(word, 0x000f000fu, 0x64006400u), from_low);
    weights[2 + i] = multiply_add(and_or(word, 0x00f000f0u, 0x64006400u), sixteenth, from_high);
  }
}

// Eight weights as they are stored: (k0, k4) and (k2, k6) times 2^-24, (k1, k5) and (k3, k7) times 2^-20.
__device__ __forceinline__ void unpack_int4_unsigned(uint32_t word, HalfPair (&weights)[4]) {
  for (int i = 0; i < 2; ++i, word >>= 8) {
    weights[i] = word & 0x000f000fu;
    weights[2 + i] = word & 0x00f000f0u;
  }
}

// Eight activations in the order of the weights.
struct Int4Order {
  __device__ __forceinline__ static Vector arranged(const Vector& x) {
    return {low_halves(x.word[0], x.word[2]), low_halves(x.word[1], x.word[3]), high_halves(x.word[0], x.word[2]),
            high_halves(x.word[1], x.word[3])};
  }
};

// What common/tile.h asks of a format. A lane has 16 weights of a row and span, 8 bytes.
struct Int4Format : Int4Storage, LaneOrder, Int4Order {
  using Arguments = Int4MatMulArguments;
  static constexpr bool kArranged = true;

  struct alignas(8) Weights {
    uint32_t word[2];
  };

  // Vectors lie as in memory, two for each of the eight rows.
  __device__ __forceinline__ static int row_of(int within) { return within / 2; }
  __device__ __forceinline__ static int vector_of(int within) { return within % 2; }

  __device__ __forceinline__ static const void* weights(const Arguments& a) { return a.qweight; }

  __device__ __forceinline__ static GridRow grid_row(const Arguments& a, int row) {
    const int groups = (a.K + a.group_size - 1) / a.group_size;
    return {opaque(a.scales + static_cast<int64_t>(row) * groups),
            opaque(a.zero_points + static_cast<int64_t>(row) * ((groups + 1) / 2))};
  }
  __device__ __forceinline__ static Grid grid(const Arguments& a, const GridRow& row, int span) {
    const int group = span >> (a.group_size == 128);
    return {load_with_line(row.scales + group), load_with_line(row.zero_points + group / 2)};
  }
  __device__ __forceinline__ static uint32_t zero(const Arguments& a, const Grid& grid, int span) {
    return grid.zeros >> (span >> (a.group_size == 128)) % 2 * 4 & 15u;
  }

  __device__ __forceinline__ static Weights load(const Vector* piece, int lane) {
    return load_shared(reinterpret_cast<const Weights*>(piece) + lane);
  }

  // Operands of a step's two products, from rows n and n + 8.
  __device__ __forceinline__ static void unpack(const Weights (&weights)[2], const uint32_t (&zeros)[2], int step,
                                                HalfPair (&operand)[2][4]) {
    for (int half = 0; half < 2; ++half) {
      HalfPair pairs[4];
      unpack_int4(weights[half].word[step], zeros[half], pairs);
      for (int i = 0; i < 4; ++i) operand[i / 2][i % 2 * 2 + half] = pairs[i];
    }
  }};

}  // namespace edge_awq
