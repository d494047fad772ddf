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
// in such orders that the lanes which are served at once (eight with 16 bytes each, sixteen with 8) meet all banks
// once. Where weights come out of their word in another order than x's (int4), x is put into that order once, by the
// thread that has copied it, before the others see it.
//
// Sums: exact integers times x in fp32 over a span, times the scale in fp32 over spans, then over slices, then over the
// blocks that share a tile, always in the same order: the same input gives the same bits. The block that finishes last
// adds up what the others have left in memory.
#pragma once

#include "device.h"
#include "tile_results.h"

namespace edge_awq {

// What one span's products are multiplied by, and what is taken off the weights before: as loaded, so that nothing
// waits for them before they are put into shared memory.
struct Grid {
  uint32_t scale, zeros;
};

// Where those of a row of W begin.
struct GridRow {
  const Half* scales;
  const uint8_t* zero_points;
};

// The order of operands in registers that suits weights which have to be unpacked anyway: in a span, lane
// 4 * row + quarter multiplies k = 16 * quarter + 8 * step + 0 .. 7. Formats inherit this, or have an order of their
// own.
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
  static_assert(kWeightCopies * Shape::kThreads == Shape::kWeightVectors);
  static_assert(kXCopies * Shape::kThreads == Shape::kXVectors);
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

  // What this thread copies of the first stage: a vector of one row of W and one of x, others being apart from these by
  // what all threads copy at once, and a scale.
  const int n = threadIdx.x / kPieceVectors / Shape::kSlices * 8 + Format::row_of(threadIdx.x % kPieceVectors);
  const int weight_span = first_stage * Shape::kSlices + threadIdx.x / kPieceVectors % Shape::kSlices;
  const int x_row = threadIdx.x / 8 % Shape::kRows;
  const int x_span = first_stage * Shape::kSlices + threadIdx.x / 8 / Shape::kRows;
  const int grid_span = first_stage * Shape::kSlices + threadIdx.x / kTileOutputs;
  const Vector* const weights_from =
      opaque(static_cast<const Vector*>(Format::weights(a)) + Format::vector_of(threadIdx.x % kPieceVectors) +
             (static_cast<int64_t>(weight_row(n).row) * spans + weight_span) * Format::kVectors);
  const Half* const x_from = opaque(a.x + static_cast<int64_t>(place.row_tile * Shape::kRows + x_row) * a.K +
                                    x_span * kSpan + Format::x_vector_at(threadIdx.x % 8, x_row) * 8);
  const GridRow grid_from = Format::grid_row(a, weight_row(threadIdx.x % kTileOutputs).row);

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

  // The row of W at place n of the tile, and the output it is for; past the end there are more than W has. Where gated,
  // 16 rows of the gate alternate with the same 16 of what it gates, so that a warp has both.
  struct Row {
    int row, output;
  };
  __device__ __forceinline__ Row weight_row(int n) const {
    const int output = a.gated ? place.n_tile * (kTileOutputs / 2) + n / 32 * 16 + n % 16
                               : place.n_tile * kTileOutputs + n;
    return {output + (a.gated && n % 32 >= 16 ? a.N / 2 : 0), output};
  }

  // Where gated, 32 rows further in the tile are 16 further in W, and 16 further are what the gate's row gates.
  __device__ __forceinline__ void copy_weights(int stage, int slot) const {
    const int row = weight_row(n).output, last = outputs_of(a);
    const bool in_k = weight_span + stage * Shape::kSlices < spans;
    const Vector* const from = weights_from + stage * (Shape::kSlices * Format::kVectors);
    #pragma unroll
    for (int i = 0; i < kWeightCopies; ++i) {
      const int further = i * kRowsAtOnce, outputs = a.gated ? further / 32 * 16 : further;
      const int64_t rows = outputs + (a.gated && further % 32 ? a.N / 2 : 0);
      copy_streamed_to_shared(weights_in(slot) + threadIdx.x + i * Shape::kThreads,
                              from + rows * spans * Format::kVectors, !(row + outputs < last && in_k));
    }
  }

  __device__ __forceinline__ void copy_x(int stage, int slot) const {
    const int row = place.row_tile * Shape::kRows + x_row, span = x_span + stage * Shape::kSlices;
    const Half* const from = x_from + stage * Shape::kStageK;
    #pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int rows = i * kXRowsAtOnce % Shape::kRows, spans_on = i * kXRowsAtOnce / Shape::kRows;
      copy_to_shared(x_in(slot) + threadIdx.x + i * Shape::kThreads, from + (rows * a.K + spans_on * kSpan),
                     !(row + rows < a.rows && span + spans_on < spans));
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
      const int span = grid_span + stage * Shape::kSlices;
      const bool in_w = span < spans && weight_row(threadIdx.x % kTileOutputs).output < outputs_of(a);
      if (threadIdx.x < Shape::kSlices * kTileOutputs && in_w) return Format::grid(a, grid_from, span);
    }
    return {};
  }

  __device__ __forceinline__ void store_grid(int stage, int slot, const Grid& loaded) const {
    if constexpr (Format::kScaled)
      if (threadIdx.x < Shape::kSlices * kTileOutputs) {
        const uint32_t zero = Format::zero(a, loaded, grid_span + stage * Shape::kSlices);
        store_shared(grid_in(slot) + threadIdx.x, loaded.scale << 16 | zero);
      }
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

  // All stages, each copied kStages - 1 stages ahead of its use; scales and zero points, which come from L2 but for the
  // first of a line, one stage ahead. The first weights are asked for before the previous kernel, which makes x, has
  // finished.
  __device__ __forceinline__ void multiply_all(Sums& sums) const {
    constexpr int kAhead = Shape::kStages - 1;
    int current = 0, next = 0;
    Grid grid = load_grid(0);
    #pragma unroll
    for (int stage = 0; stage < kAhead; ++stage, next = after(next)) {
      if (stage < stages) copy_weights(stage, next);
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
      store_grid(stage, current, grid);
      __syncthreads();  // everybody's copies have landed, and nobody reads the stage before this one any more
      if (stage + 1 < stages) grid = load_grid(stage + 1);
      if (stage + kAhead < stages) {
        copy_weights(stage + kAhead, next);
        copy_x(stage + kAhead, next);
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
