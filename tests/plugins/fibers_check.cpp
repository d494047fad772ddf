// Small kernels that show whether fibers.h and the CPU bodies of device.h do what a GPU does.
#include "../../plugins/common/device.h"

namespace {

// Sums a block's values through shuffles and shared memory.
template <bool has_barrier>
__global__ void sum(const float* values, float* total) {
  float* warps = edge_awq::block_shared<float[8]>();
  float value = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int mask = 16; mask; mask /= 2) value += edge_awq::shuffle_xor(value, mask);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  if (has_barrier) __syncthreads();
  if (threadIdx.x > 0) return;
  float result = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) result += warps[warp];
  total[blockIdx.x] = result;
}

// One warp: c [16, 8] = a [16, 16] @ b [16, 8], b given by columns.
__global__ void product(const edge_awq::HalfPair* a, const edge_awq::HalfPair* b, float* c) {
  const int row = threadIdx.x / 4, pair = threadIdx.x % 4;
  float d[4] = {};
  const edge_awq::HalfPair *upper = a + row * 8 + pair, *lower = upper + 8 * 8, *column = b + row * 8 + pair;
  edge_awq::multiply_16x8x16(d, {upper[0], lower[0], upper[4], lower[4]}, {column[0], column[4]});
  for (int i = 0; i < 4; ++i) c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = d[i];
}

// The first thread waits at a barrier that the others pass once more than it does.
__global__ void stuck() {
  if (threadIdx.x == 0) edge_awq::shuffle_xor(0, 1);
  __syncthreads();
}

}  // namespace

extern "C" {

int check_sum(int has_barrier, const float* values, float* total, unsigned schedule) {
  return static_cast<int>(fibers::launch(3, 256, schedule, [&] {
    has_barrier ? sum<true>(values, total) : sum<false>(values, total);
  }));
}

int check_product(const edge_awq::HalfPair* a, const edge_awq::HalfPair* b, float* c, unsigned schedule) {
  return static_cast<int>(fibers::launch(1, 32, schedule, [&] { product(a, b, c); }));
}

int check_stuck(unsigned schedule) {
  return static_cast<int>(fibers::launch(1, 64, schedule, [] { stuck(); }));
}

}  // extern "C"
