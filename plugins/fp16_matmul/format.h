// fp16 weights on their way to the tensor cores: as they are, so in the order that ldmatrix gives.
#pragma once

#include "../common/tile.h"
#include "kernel.h"

namespace edge_awq {

// What common/tile.h asks of a format. A row's 8 vectors of a span, of W as of x, are at places vector ^ (row % 8):
// ldmatrix reads the same vector of eight rows at once.
struct Fp16Format : Fp16Storage {
  using Arguments = Fp16MatMulArguments;
  static constexpr bool kArranged = false;

  // Where 8 rows of a span are, for a lane that passes one row of one of four matrices on: rows n and n + 8 by turns,
  // then the next 8 values of k.
  struct Weights {
    const Vector* piece;
    int lane;
  };

  __device__ __forceinline__ static int row_of(int within) { return within / 8; }
  __device__ __forceinline__ static int vector_of(int within) { return within % 8 ^ within / 8; }

  __device__ __forceinline__ static const void* weights(const Arguments& a) { return a.weight; }

  __device__ __forceinline__ static GridRow grid_row(const Arguments&, int) { return {}; }

  __device__ __forceinline__ static Weights load(const Vector* piece, int lane) { return {piece, lane}; }

  // Operands of a step's two products, from rows n and n + 8: k = 32 * step + 0 .. 15 and + 16 .. 31.
  __device__ __forceinline__ static void unpack(const Weights (&weights)[2], const uint32_t (&)[2], int step,
                                                HalfPair (&operand)[2][4]) {
    const int lane = weights[0].lane, row = lane % 8, matrix = lane / 8;
    const Vector* const piece = (matrix % 2 ? weights[1] : weights[0]).piece + row * 8;
    for (int i = 0; i < 2; ++i) {
      const Vector loaded = load_matrices(piece + ((4 * step + 2 * i + matrix / 2) ^ row));
      for (int j = 0; j < 4; ++j) operand[i][j] = loaded.word[j];
    }
  }

  __device__ __forceinline__ static int x_vector_at(int place, int row) { return place ^ row % 8; }
  __device__ __forceinline__ static int x_place(int lane, int step) {
    return lane % 8 * 8 + ((4 * step + lane / 8) ^ lane % 8);
  }
  __device__ __forceinline__ static Vector load_x(const Vector* place) { return load_matrices(place); }
};

}  // namespace edge_awq
