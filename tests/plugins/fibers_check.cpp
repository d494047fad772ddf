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

// One warp: each lane's registers as they are given.
__global__ void product_of_registers(const edge_awq::HalfPair (*a)[4], const edge_awq::HalfPair (*b)[2],
                                     float (*d)[4]) {
  edge_awq::multiply_16x8x16(d[threadIdx.x], a[threadIdx.x], b[threadIdx.x]);
}

// One warp: lane i passes row i of four matrices one after the other.
__global__ void matrices(const edge_awq::Vector* rows, edge_awq::Vector* registers, bool is_transposed) {
  auto& shared = edge_awq::block_shared<edge_awq::Vector[32]>();
  shared[threadIdx.x] = rows[threadIdx.x];
  __syncthreads();
  const edge_awq::Vector* const own = &shared[threadIdx.x];
  registers[threadIdx.x] =
      is_transposed ? edge_awq::load_matrices_transposed(own) : edge_awq::load_matrices(own);
}

// The first thread waits at a barrier that the others pass once more than it does.
__global__ void stuck() {
  if (threadIdx.x == 0) edge_awq::shuffle_xor(0, 1);
  __syncthreads();
}

// A lane returns before its warp exchanges values.
__global__ void leave(int* results) {
  if (threadIdx.x == 5) return;
  results[threadIdx.x] = edge_awq::shuffle_xor(static_cast<int>(threadIdx.x), 1);
}

// Ways in which threads meet in memory, a right one and wrong ones that give right results on fibers.
enum class Meeting {
  kBarrier, kShuffleAlone, kWriteAfterRead, kCopy, kCopyNotWaitedFor, kCopyOverWhatIsRead, kAdditions,
  kReadDuringAdditions, kCounter, kNoCounter, kConstant, kWrittenConstant
};

// Neighbours' values by way of shared memory.
__device__ void meet_in_a_block(Meeting meeting, const edge_awq::Vector* values, edge_awq::Vector* results) {
  auto& shared = edge_awq::block_shared<edge_awq::Vector[64]>();
  const unsigned own = threadIdx.x, next = own ^ 1;
  const bool is_copied = meeting >= Meeting::kCopy && meeting <= Meeting::kCopyOverWhatIsRead;
  if (is_copied) {
    edge_awq::copy_to_shared(&shared[own], values + own, false);
    edge_awq::commit_copies();
    edge_awq::wait_for_copies<0>();
  } else {
    shared[own] = values[own];
  }
  if (meeting == Meeting::kShuffleAlone) edge_awq::shuffle_xor(0, 1);
  if (meeting != Meeting::kShuffleAlone) __syncthreads();
  results[own] = shared[next];
  if (meeting == Meeting::kWriteAfterRead) shared[own] = values[own];
  if (meeting == Meeting::kCopyOverWhatIsRead) edge_awq::copy_to_shared(&shared[own], values + own, false);
  if (meeting != Meeting::kCopyNotWaitedFor) return;
  __syncthreads();
  edge_awq::copy_to_shared(&shared[own], values + own, false);
  __syncthreads();
  results[own] = shared[next];
}

__device__ void add(Meeting meeting, uint32_t* result) {
  auto& sum = edge_awq::block_shared<uint32_t>();
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  edge_awq::add_shared(&sum, 1);
  if (meeting == Meeting::kAdditions) __syncthreads();
  if (threadIdx.x == 63) *result = sum;
}

// The last block reads what the others have written.
__device__ void meet_in_a_grid(Meeting meeting, uint32_t* results, unsigned* counter) {
  if (threadIdx.x == 0) results[blockIdx.x] = 1;
  const bool is_last = meeting == Meeting::kCounter ? edge_awq::is_last_block(counter, gridDim.x)
                                                    : blockIdx.x == gridDim.x - 1;
  if (is_last && threadIdx.x == 0) results[gridDim.x] = results[0];
}

// What every thread reads through the read-only path.
__device__ void meet_constants(Meeting meeting, const uint32_t* values, uint32_t* results) {
  results[threadIdx.x] = 1;
  results[threadIdx.x] = edge_awq::load_constant(meeting == Meeting::kConstant ? values : results + threadIdx.x);
}

__global__ void meet(Meeting meeting, const edge_awq::Vector* values, edge_awq::Vector* results, unsigned* counter) {
  const auto words = reinterpret_cast<uint32_t*>(results);
  if (meeting < Meeting::kAdditions) return meet_in_a_block(meeting, values, results);
  if (meeting < Meeting::kCounter) return add(meeting, words);
  if (meeting < Meeting::kConstant) return meet_in_a_grid(meeting, words, counter);
  meet_constants(meeting, reinterpret_cast<const uint32_t*>(values), words);
}

}  // namespace

extern "C" {

// What is wrong with one of these, as far as this build sees races.
const char* check_meeting(int meeting, const edge_awq::Vector* values, edge_awq::Vector* results, unsigned* counter) {
  static std::string found;
  const auto kind = static_cast<Meeting>(meeting);
  const unsigned blocks = kind == Meeting::kCounter || kind == Meeting::kNoCounter ? 2 : 1;
  fibers::launch(blocks, 64, 0, [&] { meet(kind, values, results, counter); });
  found = fibers::races::found();
  return found.c_str();
}

int check_sum(int has_barrier, const float* values, float* total, unsigned schedule) {
  return static_cast<int>(fibers::launch(3, 256, schedule, [&] {
    has_barrier ? sum<true>(values, total) : sum<false>(values, total);
  }));
}

int check_product(const edge_awq::HalfPair* a, const edge_awq::HalfPair* b, float* c, unsigned schedule) {
  return static_cast<int>(fibers::launch(1, 32, schedule, [&] { product(a, b, c); }));
}

void check_product_of_registers(const void* a, const void* b, void* d) {
  fibers::launch(1, 32, 0, [&] {
    product_of_registers(static_cast<const edge_awq::HalfPair(*)[4]>(a), static_cast<const edge_awq::HalfPair(*)[2]>(b),
                         static_cast<float(*)[4]>(d));
  });
}

void check_matrices(const edge_awq::Vector* rows, edge_awq::Vector* registers, int is_transposed) {
  fibers::launch(1, 32, 0, [&] { matrices(rows, registers, is_transposed != 0); });
}

int check_leave(int* results, unsigned schedule) {
  return static_cast<int>(fibers::launch(1, 32, schedule, [&] { leave(results); }));
}

int check_stuck(unsigned schedule) {
  return static_cast<int>(fibers::launch(1, 64, schedule, [] { stuck(); }));
}

}  // extern "C"
