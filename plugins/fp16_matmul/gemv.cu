// fp16 weights times 1 to 8 rows of fp16 activations: the yardstick for the int4 kernel, and the head where it is fp16.
//
// The bound it chases: every weight is read from memory once, so time >= N * K * 2 / bandwidth.
//
// Who reads what. As in int4_matmul/gemv.cu a block computes 16 values of N and its 8 warps take turns along K. A chunk
// is 64 weights of each row, a line of 128 bytes; lane 4 * row + quarter reads 16 bytes in either half of it, for rows
// n and n + 8:
//
//   bytes     0 .. 15   16 .. 31  32 .. 47  48 .. 63  |  64 .. 79  80 .. 95  96 .. 111  112 .. 127
//   quarter      0         1         2         3      |     0         1          2          3
//
// A product over 16 k takes from each lane four weights of either row, and the same four activations, in any order; so
// words 0 and 1 of what a lane has read are one product's operands, words 2 and 3 the next one's, as they are.
//
// Sums: fp32 over a chunk on the tensor core, fp32 over chunks per warp, then over warps, always in the same order.
#include "../common/gemv.h"
#include "kernel.h"

namespace edge_awq {

template <bool kNormed>
struct Fp16Gemv {
  static constexpr int kChunk = 64;  // weights of a row that a warp multiplies at once
  static constexpr int kAhead = 3;   // chunks on their way from memory, 2 KiB each per warp

  using Normed = NormedRows<1>;
  using Shared = GemvShared<GemvSums<1, 8>, Normed>;

  struct Weights {
    Vector rows[2][2];  // n and n + 8, each from both halves of the line
  };

  const Fp16MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` with x[row]
  const int chunks = a.K / kChunk;
  const GemvRows rows{a, row};
  const Normed normed{a};

  // Where this lane's 8 values of k begin.
  __device__ __forceinline__ int lane_k(int chunk, int half) const {
    return chunk * kChunk + half * kChunk / 2 + quarter * 8;
  }

  __device__ __forceinline__ Weights load(int chunk) const {
    Weights weights;
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half)
        weights.rows[i][half] = load_streamed(a.weight + static_cast<int64_t>(rows.n[i]) * a.K + lane_k(chunk, half));
    return weights;
  }

  __device__ __forceinline__ void multiply(int chunk, const Weights& weights, float (&sums)[1][4]) const {
    float products[4] = {};
    for (int half = 0; half < 2; ++half) {
      const Vector &upper = weights.rows[0][half], &lower = weights.rows[1][half];
      const Half* source = a.x + static_cast<int64_t>(row) * a.K + lane_k(chunk, half);
      Vector x = {0, 0, 0, 0};
      if (row < a.rows)
        x = kNormed ? normed.get(row, chunk * (kChunk / 8) + half * 4, 0, quarter)
                    : *reinterpret_cast<const Vector*>(source);
      for (int i = 0; i < 4; i += 2)
        multiply_16x8x16(products, {upper.word[i], lower.word[i], upper.word[i + 1], lower.word[i + 1]},
                         {x.word[i], x.word[i + 1]});
    }
    for (int i = 0; i < 4; ++i) sums[0][i] += products[i];
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

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 96 KiB on their way per multiprocessor
fp16_gemv(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Fp16Gemv<false>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 96 KiB on their way per multiprocessor
fp16_gemv_normed(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Fp16Gemv<true>{a}.run();
}
