// Rows of x in shared memory: every block puts all of them there for itself, normalized if there is a norm in front of
// the GEMV, while its first weights are on their way. The rows are short and in L2; a norm's launch is saved, and values
// are brought into the weights' order once, not by every warp.
//
// A row of shared memory holds vectors of 8 values. The GEMVs' lanes, 4 * row + quarter, read vector i of their own
// kLaneVectors at a time; of every 4 * kLaneVectors vectors in a row those with the same i lie side by side, and odd
// rows are shifted by four, so that the eight lanes which are served at once meet all banks once:
//
//   vector     q * kLaneVectors + i   ->   place   (4 * i + q) ^ 4 * (row % 2)
//
// A vector's values come in the order in which the format's weights do (Order::arranged()).
//
// Sums are fp32: per thread in order, over lanes by shuffles, over warps in order; same input, same bits.
#pragma once

#include "gemv_shape.h"
#include "linear.h"
#include "row_norm.h"

namespace edge_awq {

// The order in which they lie in memory.
struct PlainOrder {
  __device__ __forceinline__ static Vector arranged(const Vector& x) { return x; }
};

template <int kLaneVectors, class Order = PlainOrder>
struct SharedRows {
  struct Sums {
    float warps[2][kGemvMaxRows][kGemvWarps];  // of values, or their squares; of squares of differences to the mean
  };

  const Linear& a;
  const int vectors = a.K / kVectorHalves, pitch = (vectors + kSharedRowPitch - 1) / kSharedRowPitch * kSharedRowPitch;

  __device__ __forceinline__ Vector* shared() const {
    return dynamic_shared(static_cast<size_t>(a.rows) * pitch * sizeof(Vector));
  }

  // A row as one lane reads it, from shared memory or from x itself: get(j) is, from where it stands, the j-th of the
  // vectors that its quarter has.
  template <bool kShared>
  struct LaneRow {
    const Vector* places[2];  // in shared memory of even vectors, and of odd ones; in x the first is enough

    __device__ __forceinline__ Vector get(int j) const {
      if (kShared) return load_shared(places[j % 2] + 4 * j);
      return Order::arranged(places[0][j / kLaneVectors * (4 * kLaneVectors) + j % kLaneVectors]);
    }
    __device__ __forceinline__ void advance(int vectors) {
      for (const Vector*& place : places) place += 4 * vectors;
    }
  };

  // It stands at its vector `first`, a multiple of 2 and of kLaneVectors.
  template <bool kShared>
  __device__ __forceinline__ LaneRow<kShared> lane_row(int row, int quarter, int first) const {
    const Vector* const x = reinterpret_cast<const Vector*>(a.x);
    if (!kShared) return {x + (row * vectors + quarter * kLaneVectors + 4 * first), nullptr};
    const Vector* const start = shared() + (row * pitch + quarter + 4 * first);
    const int shift = row % 2 * 4;
    return {start + shift, start - shift};
  }

  // Which of a row's vectors lies at a place; past the end there are more than the row has.
  __device__ __forceinline__ static int vector_at(int row, int place) {
    const int unshifted = place ^ row % 2 * 4, within = unshifted % (4 * kLaneVectors);
    return unshifted - within + within % 4 * kLaneVectors + within / 4;
  }

  __device__ __forceinline__ void load(int row, int vector, float (&values)[kVectorHalves]) const {
    unpack_halves(reinterpret_cast<const Vector*>(a.x)[row * vectors + vector], values);
  }

  __device__ __forceinline__ float mean_over_block(const float (&warps)[kGemvWarps]) const {
    float sum = 0.0f;
    for (float each : warps) sum += each;
    return sum / a.K;
  }

  // Means, or means of squares, or of squares of differences to the mean.
  template <class Term>
  __device__ __forceinline__ void add_up(float (&sums)[kGemvMaxRows][kGemvWarps], const Term& term) const {
    for (int row = 0; row < a.rows; ++row) {
      float values[kVectorHalves], sum = 0.0f;
      for (int vector = threadIdx.x; vector < vectors; vector += kGemvThreads) {
        load(row, vector, values);
        for (float value : values) sum = term(row, value, sum);
      }
      sum = sum_over_warp(sum);
      if (threadIdx.x % kWarpSize == 0) sums[row][threadIdx.x / kWarpSize] = sum;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void make(Sums& sums) const {
    if (a.norm == NormKind::kNone) {
      const Vector* const x = reinterpret_cast<const Vector*>(a.x);
      for (int row = 0; row < a.rows; ++row) fill(row, [&](int vector) { return x[row * vectors + vector]; });
    } else {
      make_normed(sums);
    }
    __syncthreads();
  }

  // Every place of a row; past its end there are zeros.
  template <class Source>
  __device__ __forceinline__ void fill(int row, const Source& source) const {
    for (int place = threadIdx.x; place < pitch; place += kGemvThreads) {
      const int vector = vector_at(row, place);
      store_shared(shared() + row * pitch + place,
                   vector < vectors ? Order::arranged(source(vector)) : Vector{0, 0, 0, 0});
    }
  }

  __device__ __forceinline__ void make_normed(Sums& sums) const {
    const bool is_centred = a.norm == NormKind::kLayer;
    add_up(sums.warps[0],
           [&](int, float value, float sum) { return is_centred ? sum + value : multiply_add(value, value, sum); });
    if (is_centred)
      add_up(sums.warps[1], [&](int row, float value, float sum) {
        const float difference = value - mean_over_block(sums.warps[0][row]);
        return multiply_add(difference, difference, sum);
      });
    for (int row = 0; row < a.rows; ++row) {
      const float mean = is_centred ? mean_over_block(sums.warps[0][row]) : 0.0f;
      const float factor = 1.0f / square_root(mean_over_block(sums.warps[is_centred][row]) + a.norm_epsilon);
      fill(row, [&](int vector) {
        float y[kVectorHalves];
        load(row, vector, y);
        normalize(y, mean, factor, a.norm_weight, a.norm_bias, vector);
        return pack_halves(y);
      });
    }
  }
};

}  // namespace edge_awq
