// Reads memory once, 16 bytes a lane, and adds it up, so that nothing of it can be left out.
//
// The bound it chases is the memory's bandwidth itself: neighbouring lanes read neighbouring vectors, and every thread
// has eight loads on their way at once.
#include "../common/device.h"
#include "kernel.h"

namespace edge_awq {

constexpr int kReadAhead = 8;

__device__ __forceinline__ uint32_t word_sum(const Vector& vector) {
  return vector.word[0] + vector.word[1] + vector.word[2] + vector.word[3];
}

__device__ __forceinline__ void read_and_sum(const ReadArguments& a) {
  const Vector* const data = reinterpret_cast<const Vector*>(a.data);
  const int64_t step = static_cast<int64_t>(a.blocks) * kReadThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  uint32_t sum = 0;
  int64_t i = first;
  for (; i + (kReadAhead - 1) * step < a.vectors; i += kReadAhead * step) {
    Vector ahead[kReadAhead];
    #pragma unroll
    for (int j = 0; j < kReadAhead; ++j) ahead[j] = load_streamed(data + i + j * step);
    #pragma unroll
    for (int j = 0; j < kReadAhead; ++j) sum += word_sum(ahead[j]);
  }
  for (; i < a.vectors; i += step) sum += word_sum(load_streamed(data + i));
  a.sums[first] = sum;
}

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kReadThreads) read_sum(const edge_awq::ReadArguments a) {
  edge_awq::read_and_sum(a);
}
