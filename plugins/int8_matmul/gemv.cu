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

  using Rows = SharedRows<2>;
  using Shared = GemvShared<GemvSums<1, 8>, Rows>;

  // One lane's share of a chunk, as it comes from memory: rows n and n + 8 of W.
  struct Loaded {
    Vector weights[2];
    Half scales[2];
    uint32_t zeros[2];
  };

  const Int8MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` with x[row]
  const int chunks = a.K / kChunk, group_shift = a.group_size == 128;  // groups are 2^group_shift chunks
  const Rows shared_rows{a};

  // Where this lane stands: at its part of its warp's next chunk.
  const uint8_t* weights[2];
  int first_scale[2];
  typename Rows::template LaneRow<kNormed> x_row = shared_rows.template lane_row<kNormed>(row, quarter, warp * 2);
  Vector x[2] = {};  // stay zeros where there is no such row

  __device__ __forceinline__ Int8Gemv(const Int8MatMulArguments& arguments) : a(arguments) {
    const GemvRows rows{a, row};
    const int groups = (chunks + group_shift) >> group_shift;
    for (int half = 0; half < 2; ++half) {
      weights[half] = a.qweight + static_cast<int64_t>(rows.n[half]) * a.K + warp * kChunk + quarter * kLaneWeights;
      first_scale[half] = rows.n[half] * groups + (warp >> group_shift);
    }
  }

  __device__ __forceinline__ void load(int i, int left, Loaded& loaded) const {
    const int before = i * kGemvWarps, groups = before >> group_shift;  // chunks
    if (left <= before) return;
    for (int half = 0; half < 2; ++half) {
      loaded.weights[half] = load_streamed(weights[half] + before * kChunk);
      loaded.scales[half] = load_constant(a.scales + (first_scale[half] + groups));
      loaded.zeros[half] = load_constant(a.zero_points + (first_scale[half] + groups));
    }
  }

  __device__ __forceinline__ void advance() {
    constexpr int kBy = kAhead * kGemvWarps;  // chunks
    for (int half = 0; half < 2; ++half) {
      weights[half] += kBy * kChunk;
      first_scale[half] += kBy >> group_shift;
    }
    x_row.advance(kBy * 2);
  }

  __device__ __forceinline__ void multiply(int i, int, const Loaded& loaded, float (&sums)[1][4]) {
    const int before = i * kGemvWarps;
    if (row < a.rows)
      for (int j = 0; j < 2; ++j) x[j] = x_row.get(before * 2 + j);
    float products[4] = {};
    for (int j = 0; j < 4; ++j) {
      HalfPair upper[2], lower[2];
      unpack_int8(loaded.weights[0].word[j], loaded.zeros[0], upper);
      unpack_int8(loaded.weights[1].word[j], loaded.zeros[1], lower);
      multiply_16x8x16(products, {upper[0], lower[0], upper[1], lower[1]},
                       {x[j / 2].word[j % 2 * 2], x[j / 2].word[j % 2 * 2 + 1]});
    }
    for (int j = 0; j < 4; ++j) sums[0][j] = multiply_add(to_float(loaded.scales[j / 2]), products[j], sums[0][j]);
  }

  __device__ __forceinline__ void prepare() const {
    if (kNormed) shared_rows.make(block_shared<Shared>().norm);
  }

  __device__ __forceinline__ void run() {
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
  edge_awq::Int8Gemv<false>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, 2)  // 48 KiB on their way per multiprocessor
int8_gemv_normed(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Int8Gemv<true>(a).run();
}
