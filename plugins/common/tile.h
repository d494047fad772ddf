// Matmuls of more rows than a GEMV takes, for every format of weights: a block computes 128 values of N for a tile of
// rows of x.
//
// The bound it chases: up to some 32 rows that of the GEMV, every weight read from memory once; beyond, the tensor
// cores. Weights and x come to shared memory in stages along K by asynchronous copies, several stages ahead of use.
//
//              k = 0     64     128    192    256                   x, a tile of rows, in the same stages
//                 +------+------+------+------+-- ..                +------+------+-- ..
//   warp 0   n = 0|span 0|span 1|span 2|span 3|                     |      |      |
//            ..   |   first stage |   second  |                     +------+------+-- ..
//   warp 1     32 |      |      |      |      |
//   warp 2     64 |      |      |      |      |   Four warps have 32 values of N each. With two slices, a stage is two
//   warp 3     96 |      |      |      |      |   spans, and four more warps have the same 32 and the second span; with
//            ..127+------+------+------+------+   two row warps, four more have the other half of the rows of x.
//
// As in the GEMVs weights are the tensor cores' 16-row operand and a row of x is a column. Shared memory holds
//
//   W     [16 blocks of 8 rows][spans][what 8 rows of a span take, in the order in which the format reads it]
//   x     [spans][rows][8 vectors of 8 values, in the order in which the format reads them]
//   grid  [spans][128] scale << 16 | zero point, of formats that have them
//
// in such orders that the lanes which are served at once (eight with 16 bytes each, sixteen with 8) meet all banks once.
// Where weights come out of their word in another order than x's (int4), x is put into that order once, by the thread
// that has copied it, before the others see it.
//
// Sums: exact integers times x in fp32 over a span, times the scale in fp32 over spans, then over slices, then over the
// blocks that share a tile, always in the same order: the same input gives the same bits. The block that finishes last
// adds up what the others have left in memory.
#pragma once

#include "device.h"
#include "tile_results.h"

namespace edge_awq {

// What one span's products are multiplied by, and what is taken off the weights before.
struct Grid {
  Half scale;
  uint8_t zero;
};

// The order of operands in registers that suits weights which have to be unpacked anyway: in a span, lane
// 4 * row + quarter multiplies k = 16 * quarter + 8 * step + 0 .. 7. Formats inherit this, or have an order of their own.
struct LaneOrder {
  // Which of a row's 8 vectors lies at a place, and from where a lane reads what it needs of 8 rows of x in a step.
  __device__ __forceinline__ static int x_vector_at(int place, int row) {
    const int step_and_quarter = place ^ row % 2 * 4;
    return step_and_quarter % 4 * 2 + step_and_quarter / 4;
  }
  __device__ __forceinline__ static int x_place(int lane, int step) {
    return lane / 4 * 8 + ((4 * step + lane % 4) ^ lane / 4 % 2 * 4);
  }
  __device__ __forceinline__ static Vector load_x(const Vector* place) { return load_shared(place); }
};

template <class Format, class Shape>
struct Tile {
  using Arguments = typename Format::Arguments;
  using Sums = typename TileResults<Shape>::Sums;
  static constexpr int kPieceVectors = 8 * Format::kVectors;  // 8 rows of a span
  static constexpr int kPiecesAtOnce = Shape::kThreads / kPieceVectors;
  static constexpr int kRowsAtOnce = 8 * kPiecesAtOnce / Shape::kSlices;  // of W, copied by all threads at once
  static constexpr int kXRowsAtOnce = Shape::kThreads / 8;
  static constexpr int kWeightCopies = Shape::kWeightVectors / Shape::kThreads;
  static constexpr int kXCopies = Shape::kXVectors / Shape::kThreads;
  static_assert(kWeightCopies * Shape::kThreads == Shape::kWeightVectors && kXCopies * Shape::kThreads == Shape::kXVectors);
  static_assert(Shape::kSlices * kTileOutputs <= Shape::kThreads);  // each loads one scale and zero point at most
  static_assert(kPiecesAtOnce % Shape::kSlices == 0 && (kRowsAtOnce == 16 || kRowsAtOnce % 32 == 0));

  const Arguments& a;
  const TilePlace place{Shape::kRows, a, static_cast<int>(blockIdx.x)};
  Vector* const shared = dynamic_shared(Shape::kSharedBytes);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int output_warp = warp % kOutputWarps, row_warp = warp / kOutputWarps % Shape::kRowWarps;
  const int slice = warp / kOutputWarps / Shape::kRowWarps;
  const int spans = a.K / kSpan;
  const int all_stages = (spans + Shape::kSlices - 1) / Shape::kSlices;
  const int first_stage = static_cast<int>(static_cast<int64_t>(all_stages) * place.split / a.splits);
  const int stages = static_cast<int>(static_cast<int64_t>(all_stages) * (place.split + 1) / a.splits) - first_stage;

  // A stage's place in shared memory: how many vectors come before it.
  __device__ __forceinline__ static int after(int slot) {
    const int next = slot + Shape::kStageVectors;
    return next == Shape::kStages * Shape::kStageVectors ? 0 : next;
  }
  __device__ __forceinline__ Vector* weights_in(int slot) const { return shared + slot; }
  __device__ __forceinline__ Vector* x_in(int slot) const { return shared + slot + Shape::kWeightVectors; }
  __device__ __forceinline__ uint32_t* grid_in(int slot) const {
    return reinterpret_cast<uint32_t*>(shared + slot + Shape::kWeightVectors + Shape::kXVectors);
  }

  // The row of W at place n of the tile, and whether there is one. Where gated, 16 rows of the gate alternate with the
  // same 16 of what it gates, so that a warp has both.
  struct Row {
    int row;
    bool exists;
  };
  __device__ __forceinline__ Row weight_row(int n) const {
    if (!a.gated) {
      const int row = place.n_tile * kTileOutputs + n;
      return {row, row < a.N};
    }
    const int output = place.n_tile * (kTileOutputs / 2) + n / 32 * 16 + n % 16;
    return {output + n / 16 % 2 * (a.N / 2), output < a.N / 2};
  }

  // A thread copies the same part of a span for rows that are kRowsAtOnce apart; where gated, half of that in W.
  __device__ __forceinline__ void copy_weights(int stage, int slot) const {
    const int piece = threadIdx.x / kPieceVectors, within = threadIdx.x % kPieceVectors;
    const int n = piece / Shape::kSlices * 8 + Format::row_of(within);
    const int span = (first_stage + stage) * Shape::kSlices + piece % Shape::kSlices;
    const Vector* const from = static_cast<const Vector*>(Format::weights(a)) + Format::vector_of(within);
    #pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      const int rows_on = i * kRowsAtOnce;
      const Row row = weight_row(n + rows_on);
      const int64_t vector = (static_cast<int64_t>(row.row) * spans + span) * Format::kVectors;
      copy_streamed_to_shared(weights_in(slot) + threadIdx.x + i * Shape::kThreads, from + vector,
                              !(row.exists && span < spans));
    }
  }

  // A thread copies the same vector of a span for rows, or spans, that are apart by what all threads copy at once.
  __device__ __forceinline__ void copy_x(int stage, int slot) const {
    const int row = threadIdx.x / 8 % Shape::kRows, row_in_x = place.row_tile * Shape::kRows + row;
    const int span = (first_stage + stage) * Shape::kSlices + threadIdx.x / 8 / Shape::kRows;
    const Half* const from = a.x + static_cast<int64_t>(row_in_x) * a.K + Format::x_vector_at(threadIdx.x % 8, row) * 8;
    #pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int rows_on = i * kXRowsAtOnce % Shape::kRows, spans_on = i * kXRowsAtOnce / Shape::kRows;
      copy_to_shared(x_in(slot) + threadIdx.x + i * Shape::kThreads, from + (rows_on * a.K + (span + spans_on) * kSpan),
                     !(row_in_x + rows_on < a.rows && span + spans_on < spans));
    }
  }

  __device__ __forceinline__ void arrange_x(int slot) const {
    if constexpr (Format::kArranged) {
      #pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
        Vector* const vector = x_in(slot) + threadIdx.x + i * Shape::kThreads;
        store_shared(vector, Format::arranged(load_shared(vector)));
      }
    }
  }

  __device__ __forceinline__ Grid load_grid(int stage) const {
    if constexpr (Format::kScaled) {
      const Row row = weight_row(threadIdx.x % kTileOutputs);
      const int slice_of_k = threadIdx.x / kTileOutputs, span = (first_stage + stage) * Shape::kSlices + slice_of_k;
      if (slice_of_k < Shape::kSlices && row.exists && span < spans) return Format::grid(a, row.row, span);
    }
    return {};
  }

  __device__ __forceinline__ void store_grid(int slot, const Grid& pending) const {
    if constexpr (Format::kScaled)
      if (threadIdx.x < Shape::kSlices * kTileOutputs)
        store_shared(grid_in(slot) + threadIdx.x, static_cast<uint32_t>(pending.scale.bits) << 16 | pending.zero);
  }

  // This warp's 32 rows of W times its rows of x, for its span of a stage.
  __device__ __forceinline__ void multiply(int slot, Sums& sums) const {
    const Vector* x = x_in(slot) + (slice * Shape::kRows + row_warp * (Shape::kRows / Shape::kRowWarps)) * 8;
    HalfPair operands[2][2][2][4];  // for a step, 16 rows of W, one of two products, and what the tensor core says
    float scales[2][2] = {};        // for 16 rows of W, and of these the first 8 or the last
    #pragma unroll
    for (int half = 0; half < 2; ++half) load_operands(slot, half, operands, scales[half]);
    #pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
      float products[2][4] = {};
      auto& results = Format::kScaled ? products : sums[tile];
      #pragma unroll
      for (int step = 0; step < 2; ++step) {
        const Vector column = Format::load_x(x + Format::x_place(lane, step) + tile * 64);
        #pragma unroll
        for (int i = 0; i < 4; ++i)
          multiply_16x8x16(results[i / 2], operands[step][i / 2][i % 2],
                           {column.word[i % 2 * 2], column.word[i % 2 * 2 + 1]});
      }
      if constexpr (Format::kScaled) {
        #pragma unroll
        for (int i = 0; i < 8; ++i)
          sums[tile][i / 4][i % 4] =
              multiply_add(scales[i / 4][i % 4 / 2], products[i / 4][i % 4], sums[tile][i / 4][i % 4]);
      }
    }
  }

  // Weights of 16 of the warp's rows, and what their products are to be multiplied by.
  __device__ __forceinline__ void load_operands(int slot, int half, HalfPair (&operands)[2][2][2][4],
                                                float (&scales)[2]) const {
    typename Format::Weights weights[2];
    uint32_t zeros[2] = {};
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int block = output_warp * 4 + half * 2 + i;  // of 8 rows
      weights[i] = Format::load(weights_in(slot) + (block * Shape::kSlices + slice) * kPieceVectors, lane);
      if constexpr (Format::kScaled) {
        const uint32_t grid = load_shared(grid_in(slot) + slice * kTileOutputs + block * 8 + lane / 4);
        zeros[i] = grid & 0xffffu;
        scales[i] = to_float(high(grid));
      }
    }
    #pragma unroll
    for (int step = 0; step < 2; ++step) Format::unpack(weights, zeros, step, operands[step][half]);
  }

  // All stages, each copied kStages - 1 stages ahead of its use. The first weights are asked for before the previous
  // kernel, which makes x, has finished.
  __device__ __forceinline__ void multiply_all(Sums& sums) const {
    constexpr int kAhead = Shape::kStages - 1;
    Grid pending[kAhead] = {};
    int current = 0, next = 0;
    #pragma unroll
    for (int stage = 0; stage < kAhead; ++stage, next = after(next)) {
      if (stage >= stages) continue;
      copy_weights(stage, next);
      pending[stage] = load_grid(stage);
    }
    wait_for_previous_kernel();
    next = 0;
    #pragma unroll
    for (int stage = 0; stage < kAhead; ++stage, next = after(next)) {
      if (stage < stages) copy_x(stage, next);
      commit_copies();
    }
    #pragma unroll 1
    for (int stage = 0; stage < stages; ++stage, current = after(current), next = after(next)) {
      wait_for_copies<kAhead - 1>();
      arrange_x(current);
      store_grid(current, pending[0]);
      __syncthreads();  // everybody's copies have landed, and nobody reads the stage before this one any more
      #pragma unroll
      for (int i = 0; i + 1 < kAhead; ++i) pending[i] = pending[i + 1];
      if (stage + kAhead < stages) {
        copy_weights(stage + kAhead, next);
        copy_x(stage + kAhead, next);
        pending[kAhead - 1] = load_grid(stage + kAhead);
      }
      commit_copies();
      multiply(current, sums);
    }
    let_next_kernel_start();
  }

  __device__ __forceinline__ void run() const {
    Sums sums = {};
    multiply_all(sums);
    wait_for_copies<0>();
    __syncthreads();  // results take the place of the stages
    TileResults<Shape>{a}.store(sums);
  }
};

}  // namespace edge_awq
