// 8-bit weights on their way to the tensor cores.
//
// A byte put below 0x64 is the half 1024 + q, and 1024 + zero is taken off again, exactly; two bytes at a time:
//
//   word     q3 q2 q1 q0      ->      64 q1 64 q0  and  64 q3 64 q2
#pragma once

#include "../common/tile.h"
#include "kernel.h"

namespace edge_awq {

// Four weights minus their zero point, in order.
__device__ __forceinline__ void unpack_int8(uint32_t word, uint32_t zero, HalfPair (&weights)[2]) {
  const HalfPair from = 0x64006400u + zero * 0x00010001u;  // 1024 + zero
  weights[0] = subtract(select_bytes<0x4140>(word, 0x64646464u), from);
  weights[1] = subtract(select_bytes<0x4342>(word, 0x64646464u), from);
}

// What common/tile.h asks of a format. A lane has 16 weights of a row and span, 16 bytes.
struct Int8Format : Int8Storage, LaneOrder {
  using Arguments = Int8MatMulArguments;
  static constexpr bool kArranged = false;

  using Weights = Vector;

  // Vectors lie as in memory, four for each of the eight rows.
  __device__ __forceinline__ static int row_of(int within) { return within / 4; }
  __device__ __forceinline__ static int vector_of(int within) { return within % 4; }

  __device__ __forceinline__ static const void* weights(const Arguments& a) { return a.qweight; }

  __device__ __forceinline__ static GridRow grid_row(const Arguments& a, int row) {
    const int64_t first = static_cast<int64_t>(row) * ((a.K + a.group_size - 1) / a.group_size);
    return {opaque(a.scales + first), opaque(a.zero_points + first)};
  }
  __device__ __forceinline__ static Grid grid(const Arguments& a, const GridRow& row, int span) {
    const int group = span >> (a.group_size == 128);
    return {load_with_line(row.scales + group), load_with_line(row.zero_points + group)};
  }
  __device__ __forceinline__ static uint32_t zero(const Arguments&, const Grid& grid, int) { return grid.zeros; }

  __device__ __forceinline__ static Weights load(const Vector* piece, int lane) { return load_shared(piece + lane); }

  // Operands of a step's two products, from rows n and n + 8.
  __device__ __forceinline__ static void unpack(const Weights (&weights)[2], const uint32_t (&zeros)[2], int step,
                                                HalfPair (&operand)[2][4]) {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 2; ++i) {
        HalfPair pairs[2];
        unpack_int8(weights[half].word[2 * step + i], zeros[half], pairs);
        operand[i][half] = pairs[0];
        operand[i][2 + half] = pairs[1];
      }
  }
};

}  // namespace edge_awq
