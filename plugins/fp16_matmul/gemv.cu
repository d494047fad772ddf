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

  using Rows = SharedRows<1>;
  using Shared = GemvShared<GemvSums<1, 8>, Rows>;

  struct Loaded {
    Vector rows[2][2];  // n and n + 8, each from both halves of the line
  };

  const Fp16MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` with x[row]
  const Rows shared_rows{a};

  // Where this lane stands: at its part of its warp's next chunk.
  const Half* weights[2];
  typename Rows::template LaneRow<kNormed> x_row = shared_rows.template lane_row<kNormed>(row, quarter, warp * 2);
  Vector x[2] = {};  // stay zeros where there is no such row

  __device__ __forceinline__ Fp16Gemv(const Fp16MatMulArguments& arguments) : a(arguments) {
    const GemvRows rows{a, row};
    for (int i = 0; i < 2; ++i)
      weights[i] = a.weight + static_cast<int64_t>(rows.n[i]) * a.K + warp * kChunk + quarter * 8;
  }

  __device__ __forceinline__ void load(int i, int left, Loaded& loaded) const {
    const int before = i * kGemvWarps;  // chunks
    if (left <= before) return;
    for (int j = 0; j < 2; ++j)
      for (int half = 0; half < 2; ++half)
        loaded.rows[j][half] = load_streamed(weights[j] + before * kChunk + half * kChunk / 2);
  }

  __device__ __forceinline__ void advance() {
    constexpr int kBy = kAhead * kGemvWarps;  // chunks
    for (const Half*& each : weights) each += kBy * kChunk;
    x_row.advance(kBy * 2);
  }

  __device__ __forceinline__ void multiply(int i, int, const Loaded& loaded, float (&sums)[1][4]) {
    const int before = i * kGemvWarps;
    if (row < a.rows)
      for (int half = 0; half < 2; ++half) x[half] = x_row.get(before * 2 + half);
    float products[4] = {};
    for (int half = 0; half < 2; ++half) {
      const Vector &upper = loaded.rows[0][half], &lower = loaded.rows[1][half];
      for (int j = 0; j < 4; j += 2)
        multiply_16x8x16(products, {upper.word[j], lower.word[j], upper.word[j + 1], lower.word[j + 1]},
                         {x[half].word[j], x[half].word[j + 1]});
    }
    for (int j = 0; j < 4; ++j) sums[0][j] += products[j];
  }

  __device__ __forceinline__ void prepare() const {
    if (kNormed) shared_rows.make(block_shared<Shared>().norm);
  }

  __device__ __forceinline__ void run() {
    auto& shared = block_shared<Shared>().results;
    float sums[1][4] = {};
    multiply_chunks<kAhead>(*this, a.K / kChunk, sums);
    shared.put(sums);
    __syncthreads();
    shared.store(a);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 96 KiB on their way per multiprocessor
fp16_gemv(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Fp16Gemv<false>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 96 KiB on their way per multiprocessor
fp16_gemv_normed(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Fp16Gemv<true>(a).run();
}
