// The norm in front of a GEMV: every block normalizes all rows of x for itself, into shared memory, while its first
// weights are on their way. The rows are short and in L2, and a launch is saved.
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
struct NormedRows {
  struct Sums {
    float warps[2][kGemvMaxRows][kGemvWarps];  // of values, or their squares; of squares of differences to the mean
  };

  const Linear& a;
  const int vectors = a.K / kVectorHalves, pitch = (vectors + kNormedPitch - 1) / kNormedPitch * kNormedPitch;

  __device__ __forceinline__ Vector* shared() const {
    return dynamic_shared(static_cast<size_t>(a.rows) * pitch * sizeof(Vector));
  }

  // Vector i of a quarter's kLaneVectors, of those 4 * kLaneVectors that begin at `first`.
  __device__ __forceinline__ Vector get(int row, int first, int i, int quarter) const {
    return load_shared(shared() + row * pitch + ((first + 4 * i + quarter) ^ row % 2 * 4));
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
      for (int place = threadIdx.x; place < pitch; place += kGemvThreads) {
        const int vector = vector_at(row, place);
        if (vector >= vectors) continue;
        float y[kVectorHalves];
        load(row, vector, y);
        normalize(y, mean, factor, a.norm_weight, a.norm_bias, vector);
        store_shared(shared() + row * pitch + place, Order::arranged(pack_halves(y)));
      }
    }
    __syncthreads();
  }
};

// One row for products in halves: normalized, or as it is where there is no norm, and then times the power of two that
// brings its largest finite value to kBound / 2 .. kBound. So 16 of them, each times a whole number of up to 15, add up to
// no more than 61440, and nothing finite becomes infinite on the way. Values below 2^-21 of the largest may be moved by
// 2^-32 of that; all others keep their bits.
template <int kLaneVectors, class Order>
struct BoundedRow : NormedRows<kLaneVectors, Order> {
  using Base = NormedRows<kLaneVectors, Order>;
  static constexpr int kBoundExponent = 8, kBound = 1 << kBoundExponent;

  struct Sums : Base::Sums {
    float largest[kGemvWarps];
    float unit;  // what 1.0 in shared memory stands for
  };

  __device__ __forceinline__ BoundedRow(const Linear& a) : Base{a} {}

  __device__ __forceinline__ Vector get(int first, int i, int quarter) const {
    return load_shared(this->shared() + quarter + first + 4 * i);
  }

  // For each of the row's vectors that this thread has put into shared memory.
  template <class Use>
  __device__ __forceinline__ void for_own(const Use& use) const {
    for (int place = threadIdx.x; place < this->pitch; place += kGemvThreads)
      if (const int vector = Base::vector_at(0, place); vector < this->vectors) use(this->shared() + place, vector);
  }

  __device__ __forceinline__ float largest_of_block(float own, float (&warps)[kGemvWarps]) const {
    for (int mask = kWarpSize / 2; mask; mask /= 2) own = larger(own, shuffle_xor(own, mask));
    if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = own;
    __syncthreads();
    for (float each : warps) own = larger(own, each);
    return own;
  }

  __device__ __forceinline__ void make(Sums& sums) const {
    constexpr float kLargestHalf = 65504.0f;
    if (this->a.norm == NormKind::kNone) {
      const Vector* const x = reinterpret_cast<const Vector*>(this->a.x);
      for_own([&](Vector* place, int vector) { store_shared(place, Order::arranged(x[vector])); });
    } else {
      Base::make(sums);
    }
    float largest = 0.0f, values[kVectorHalves];
    for_own([&](Vector* place, int) {
      unpack_halves(load_shared(place), values);
      for (float value : values)
        if (fabsf(value) <= kLargestHalf) largest = larger(largest, fabsf(value));
    });
    largest = largest_of_block(largest, sums.largest);
    const int exponent = largest > 0.0f ? exponent_of(largest) - (kBoundExponent - 1) : 0;
    const float factor = power_of_two(-exponent);
    for_own([&](Vector* place, int) {
      unpack_halves(load_shared(place), values);
      for (float& value : values) value *= factor;
      store_shared(place, pack_halves(values));
    });
    if (threadIdx.x == 0) sums.unit = power_of_two(exponent);
    __syncthreads();
  }
};

}  // namespace edge_awq
