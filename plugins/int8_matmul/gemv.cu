// int8 weights times 1 to 8 rows of fp16 activations: the head, where 4 bits would change too many tokens.
//
// The bound it chases: every weight is read from memory once, 8.19 bits each (group 128: byte, 1/128 scale, 1/128 zero
// point), so time >= N * K * 8.19 / 8 / bandwidth.
//
// Who reads what. As in int4_matmul/gemv.cu a block computes 16 values of N and its 8 warps take turns along K. A chunk
// is 64 weights of each row, 64 bytes; lane 4 * row + quarter reads the 16 bytes at 16 * quarter, for rows n and n + 8.
// A chunk lies in one group, be it of 64 or 128.
//
// How a word of them becomes pairs of halves stands in format.h. A product over 16 k takes from each lane four
// weights of either row, a word, and the same four activations.
//
// Sums: fp32 over a chunk on the tensor core, fp32 over chunks per warp, then over warps, always in the same order.
#include "../common/gemv.h"
#include "format.h"

namespace edge_awq {

template <bool kNormed>
struct Int8Gemv {
  static constexpr int kChunk = 64;        // weights of a row that a warp multiplies at once
  static constexpr int kLaneWeights = 16;  // of those, one lane's
  static constexpr int kAhead = 3;         // chunks on their way from memory, 1 KiB each per warp

  using Normed = NormedRows<2>;
  using Shared = GemvShared<GemvSums<1, 8>, Normed>;

  // One lane's share of a chunk, as it comes from memory: rows n and n + 8 of W.
  struct Packed {
    Vector weights[2];
    Half scales[2];
    uint8_t zeros[2];
  };

  const Int8MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` with x[row]
  const int chunks = a.K / kChunk;
  const int group_chunks = a.group_size / kChunk, groups = (chunks + group_chunks - 1) / group_chunks;
  const GemvRows rows{a, row};
  const Normed normed{a};
  const uint8_t* const weights[2] = {row_start(0), row_start(1)};  // this lane's first 16 bytes
  const int first_scale[2] = {opaque(rows.n[0] * groups), opaque(rows.n[1] * groups)};

  __device__ __forceinline__ const uint8_t* row_start(int half) const {
    return opaque(a.qweight + static_cast<int64_t>(rows.n[half]) * a.K + quarter * kLaneWeights);
  }

  __device__ __forceinline__ int lane_k(int chunk) const { return chunk * kChunk + quarter * kLaneWeights; }

  __device__ __forceinline__ Packed load(int chunk) const {
    Packed packed;
    const int group = group_chunks == 1 ? chunk : chunk / 2;
    for (int half = 0; half < 2; ++half) {
      packed.weights[half] = load_streamed(weights[half] + chunk * kChunk);
      packed.scales[half] = load_constant(a.scales + first_scale[half] + group);
      packed.zeros[half] = load_constant(a.zero_points + first_scale[half] + group);
    }
    return packed;
  }

  __device__ __forceinline__ void multiply(int chunk, const Packed& packed, float (&sums)[1][4]) const {
    Vector x[2];
    const Vector* source = reinterpret_cast<const Vector*>(a.x + (row * a.K + lane_k(chunk)));
    for (Vector& each : x) each = {0, 0, 0, 0};
    if (row < a.rows)
      for (int i = 0; i < 2; ++i) x[i] = kNormed ? normed.get(row, chunk * (kChunk / 8), i, quarter) : source[i];
    float products[4] = {};
    for (int i = 0; i < 4; ++i) {
      HalfPair upper[2], lower[2];
      unpack_int8(packed.weights[0].word[i], packed.zeros[0], upper);
      unpack_int8(packed.weights[1].word[i], packed.zeros[1], lower);
      multiply_16x8x16(products, {upper[0], lower[0], upper[1], lower[1]},
                       {x[i / 2].word[i % 2 * 2], x[i / 2].word[i % 2 * 2 + 1]});
    }
    for (int i = 0; i < 4; ++i) sums[0][i] = multiply_add(to_float(packed.scales[i / 2]), products[i], sums[0][i]);
  }

  __device__ __forceinline__ void prepare() const {
    if (kNormed) normed.make(block_shared<Shared>().norm);
  }

  __device__ __forceinline__ void run() const {
    auto& shared = block_shared<Shared>().results;
    float sums[1][4] = {};
    multiply_chunks<kAhead>(*this, chunks, sums);
    shared.put(sums);
    __syncthreads();
    shared.store(a);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 3)  // 72 KiB on their way per multiprocessor
int8_gemv(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Int8Gemv<false>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 48 KiB on their way per multiprocessor
int8_gemv_normed(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Int8Gemv<true>{a}.run();
}
