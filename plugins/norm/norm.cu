// The residual stream's addition and the norm of the result, in one pass over memory.
//
// The bound it chases: latency. A row of 4096 is 8 KiB, so time is that of a few dependent loads and two reductions. A
// block has one row; a thread has every 512th vector of 8 values, and reads back what it has itself written, from L1.
//
//   vector     0    1    2   ...  511 | 512  513  ...
//   thread     0    1    2   ...  511 |   0    1  ...
//
// Sums are fp32: per thread in order, over the lanes of a warp by shuffles, over warps in order; same input, same bits.
// The variance is that of the differences to the mean, not a difference of two large sums.
#include "../common/row_norm.h"
#include "kernel.h"

namespace edge_awq {

struct Norm {
  static constexpr int kValues = kVectorHalves;
  static constexpr int kWarps = kNormThreads / kWarpSize;

  struct Shared {
    float sums[2][kWarps];  // a reduction may begin while some warps still read the last one's
  };

  const NormArguments& a;
  const int vectors = a.size / kValues;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * vectors;  // where this block's row begins, in vectors

  // The residual stream with what is added to it, as it is stored.
  __device__ __forceinline__ void add(int vector, float (&hidden)[kValues]) const {
    unpack_halves(reinterpret_cast<const Vector*>(a.x)[row + vector], hidden);
    if (!a.delta) return;
    float delta[kValues];
    unpack_halves(reinterpret_cast<const Vector*>(a.delta)[row + vector], delta);
    for (int i = 0; i < kValues; ++i) hidden[i] += delta[i];
    const Vector stored = pack_halves(hidden);
    reinterpret_cast<Vector*>(a.hidden)[row + vector] = stored;
    unpack_halves(stored, hidden);
  }

  // What add() has stored.
  __device__ __forceinline__ void load_hidden(int vector, float (&hidden)[kValues]) const {
    unpack_halves(reinterpret_cast<const Vector*>(a.delta ? a.hidden : a.x)[row + vector], hidden);
  }

  // The sum over all threads, for all of them.
  __device__ __forceinline__ static float sum_over_block(float value, float (&warps)[kWarps]) {
    value = sum_over_warp(value);
    if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    float sum = 0.0f;
    for (float each : warps) sum += each;
    return sum;
  }

  template <bool kCentred>
  __device__ __forceinline__ void run() const {
    Shared& shared = block_shared<Shared>();
    float hidden[kValues], sum = 0.0f, squares = 0.0f, mean = 0.0f;
    for (int vector = threadIdx.x; vector < vectors; vector += kNormThreads) {
      add(vector, hidden);
      for (float value : hidden) sum = kCentred ? sum + value : multiply_add(value, value, sum);
    }
    sum = sum_over_block(sum, shared.sums[0]) / a.size;
    if (kCentred) {
      mean = sum;
      for (int vector = threadIdx.x; vector < vectors; vector += kNormThreads) {
        load_hidden(vector, hidden);
        for (float value : hidden) squares = multiply_add(value - mean, value - mean, squares);
      }
      squares = sum_over_block(squares, shared.sums[1]) / a.size;
    }
    const float factor = 1.0f / square_root((kCentred ? squares : sum) + a.epsilon);
    for (int vector = threadIdx.x; vector < vectors; vector += kNormThreads) store(vector, mean, factor);
  }

  __device__ __forceinline__ void store(int vector, float mean, float factor) const {
    float y[kValues];
    load_hidden(vector, y);
    normalize(y, mean, factor, a.weight, a.bias, vector);
    reinterpret_cast<Vector*>(a.y)[row + vector] = pack_halves(y);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kNormThreads) rms_norm(const edge_awq::NormArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Norm{a}.run<false>();
  edge_awq::let_next_kernel_start();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kNormThreads) layer_norm(const edge_awq::NormArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::Norm{a}.run<true>();
  edge_awq::let_next_kernel_start();
}
