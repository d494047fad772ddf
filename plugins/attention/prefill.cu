// Attention of any number of new tokens over the cache, in two launches: append_kv rotates keys and writes keys and values
// to the cache, then prefill_attention reads them there, the old and the new alike.
//
// The bound it chases: the tensor cores, 4 * head_size operations for every query head and key that it sees.
//
// Who computes what. A query row is one head of one new token. Rows that share a KV head are numbered token by token; a
// block has 64 of them, a warp 16, and goes through the keys that any of its rows sees, a tile at a time. So heads that
// share keys and values share their tiles, and neighbouring rows see nearly the same keys. Blocks with the last tokens,
// which see most keys, come first.
//
//                first key of the window     past   position of the row
//                       |                     |       |
//   row 0 ..63   . . . .[ tile | tile | tile | tile ]. . . .       a tile is 64 keys, 32 at head size 256
//
// Keys and values come to shared memory by asynchronous copies: the values of a tile during the product of queries and
// keys, the next keys during the softmax and the product with values. Rows lie an odd number of 16 bytes apart, so that
// the 8 rows of a matrix meet all banks once.
//
// The query rows are the 16-row operand of both products. What leaves the first as scores, rows `row` and `row + 8` and
// keys 2 * quarter and the next of each 8, is what the second takes as weights, so nothing is exchanged but the maxima
// of the four lanes that share a row. Values are turned on their way to registers.
//
// Sums are fp32; the weights, 0 to 1, are rounded to fp16, and it is the rounded ones that are added up. Every row is
// summed in the order of its keys: same input, same bits.
#include "prefill.h"
#include "scores.h"

namespace edge_awq {

template <int D>
struct PrefillAttention {
  using Shape = PrefillShape<D>;
  static constexpr int kKeys = Shape::kKeys, kPitch = Shape::kPitch;
  static constexpr int kSteps = D / 16;       // of the product with keys
  static constexpr int kStepsAtOnce = Shape::kQueriesHeld ? kSteps : 4;  // unrolled further, wide heads spill registers
  static constexpr int kKeyBlocks = kKeys / 8;
  static constexpr int kCopies = kKeys * (D / 8) / kPrefillThreads;  // per thread, of a tile of keys or values
  static_assert(D % 16 == 0 && kCopies * kPrefillThreads == kKeys * (D / 8));

  using Queries = HalfPair[Shape::kQueriesHeld ? kSteps : 1][4];
  using Scores = float[kKeyBlocks][4];

  // A softmax under way: what a lane holds of query rows `row` and `row + 8` of its warp. Exponents are powers of two.
  struct Partial {
    float maximum[2] = {kNothingSeen, kNothingSeen}, sum[2] = {}, y[D / 8][4] = {};
  };

  const DecodeAttentionArguments& a;
  Vector* const shared = dynamic_shared(Shape::kSharedBytes);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row = lane / 4, quarter = lane % 4;

  const int share = a.num_heads / a.kv_num_heads, query_rows = a.tokens * share;  // of a KV head
  const int kv_head = blockIdx.x % a.kv_num_heads;
  const int row_tile = (gridDim.x - 1 - blockIdx.x) / a.kv_num_heads;
  const int first_row = row_tile * kPrefillRows;
  const int past = static_cast<int>(load_global(a.past_length));
  const int first_position = past + first_row / share;
  const int last_position = past + (at_most(first_row + kPrefillRows, query_rows) - 1) / share;
  const int end_key = at_most(last_position + 1, at_most(past + a.tokens, a.capacity));
  const int first_key = a.window && first_position + 1 > a.window ? first_position + 1 - a.window : 0;

  __device__ __forceinline__ Vector* keys() const { return shared; }
  __device__ __forceinline__ Vector* values() const { return shared + Shape::kTileVectors; }
  __device__ __forceinline__ Vector* queries() const { return shared + Shape::kQueries; }

  __device__ __forceinline__ int position_of(int r) const { return past + at_most(r, query_rows - 1) / share; }

  // A tile of a cache, which is contiguous there; zeros for keys that nobody sees.
  __device__ __forceinline__ void copy_tile(Vector* to, const Half* cache, int first) const {
    const Half* const from = cache + (static_cast<int64_t>(kv_head) * a.capacity + first) * D;
    #pragma unroll
    for (int n = 0; n < kCopies; ++n) {
      const int i = threadIdx.x + n * kPrefillThreads, key = i / (D / 8);
      copy_streamed_to_shared(to + key * kPitch + i % (D / 8), from + i * 8, first + key >= end_key);
    }
    commit_copies();
  }

  __device__ __forceinline__ void rotate_queries() const {
    #pragma unroll 4
    for (int i = threadIdx.x; i < kPrefillRows * D; i += kPrefillThreads) {
      const int r = first_row + i / D, d = i % D;
      Half value{0};
      if (r < query_rows) {
        const Half* head = a.q + static_cast<int64_t>(r / share) * a.q_stride + (kv_head * share + r % share) * D;
        value = to_half(rotated(a, head, d, at_most(position_of(r), a.capacity - 1)));
      }
      reinterpret_cast<Half*>(queries() + i / D * kPitch)[d] = value;
    }
  }

  // The warp's rows, 16 values of each.
  __device__ __forceinline__ void load_queries(int step, HalfPair (&operand)[4]) const {
    const Vector loaded = load_matrices(queries() + (16 * warp + lane % 16) * kPitch + 2 * step + lane / 16);
    for (int i = 0; i < 4; ++i) operand[i] = loaded.word[i];
  }

  __device__ __forceinline__ void multiply_with_keys(Queries& held, Scores& scores) const {
    #pragma unroll kStepsAtOnce
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (!Shape::kQueriesHeld) load_queries(step, held[0]);
      const auto& operand = held[Shape::kQueriesHeld ? step : 0];
      #pragma unroll
      for (int block = 0; block < kKeyBlocks; block += 2) {
        const int key = 8 * block + lane / 16 * 8 + lane % 8;
        const Vector columns = load_matrices(keys() + key * kPitch + 2 * step + lane / 8 % 2);
        multiply_16x8x16(scores[block], operand, {columns.word[0], columns.word[1]});
        multiply_16x8x16(scores[block + 1], operand, {columns.word[2], columns.word[3]});
      }
    }
  }

  // Products with the keys from `first` on become powers of two, and minus infinity where a row does not see a key.
  __device__ __forceinline__ void score(int first, const int (&positions)[2], const float (&slopes)[2],
                                        Scores& scores) const {
    const int key = first + 2 * quarter;  // of scores[0][0]
    #pragma unroll
    for (int i = 0; i < 4 * kKeyBlocks; ++i) scores[i / 4][i % 4] *= a.scale * kLog2E;
    if (a.softcap != 0.0f) {
      #pragma unroll
      for (int i = 0; i < 4 * kKeyBlocks; ++i) scores[i / 4][i % 4] = capped(scores[i / 4][i % 4], a.softcap);
    }
    if (a.slopes) {
      #pragma unroll
      for (int i = 0; i < 4 * kKeyBlocks; ++i) {
        const int distance = key + i / 4 * 8 + i % 2 - positions[i % 4 / 2];
        scores[i / 4][i % 4] = multiply_add(slopes[i % 4 / 2], static_cast<float>(distance), scores[i / 4][i % 4]);
      }
    }
    const bool all_visible = first + kKeys <= at_most(first_position + 1, end_key) &&
                             (a.window == 0 || first > last_position - a.window);
    if (all_visible) return;
    #pragma unroll
    for (int i = 0; i < 4 * kKeyBlocks; ++i) {
      const int k = key + i / 4 * 8 + i % 2, position = positions[i % 4 / 2];
      const bool visible = k < end_key && k <= position && (a.window == 0 || k > position - a.window);
      if (!visible) scores[i / 4][i % 4] = minus_infinity();
    }
  }

  // Softmax weights relative to the new maximum, as pairs of neighbouring keys; what was summed before is rescaled.
  __device__ __forceinline__ static void weigh(const Scores& scores, Partial& partial,
                                               HalfPair (&weights)[kKeyBlocks][2]) {
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = partial.maximum[half], sum = 0.0f;
      #pragma unroll
      for (const auto& block : scores) maximum = larger(maximum, larger(block[2 * half], block[2 * half + 1]));
      for (int mask = 1; mask < 4; mask *= 2) maximum = larger(maximum, shuffle_xor(maximum, mask));
      #pragma unroll
      for (int block = 0; block < kKeyBlocks; ++block) {
        const Half first = to_half(power_of_two(scores[block][2 * half] - maximum));
        const Half second = to_half(power_of_two(scores[block][2 * half + 1] - maximum));
        weights[block][half] = pair(first, second);
        sum += to_float(first) + to_float(second);
      }
      const float rescaling = power_of_two(partial.maximum[half] - maximum);
      partial.maximum[half] = maximum;
      partial.sum[half] = multiply_add(partial.sum[half], rescaling, sum);
      #pragma unroll
      for (auto& product : partial.y)
        for (int i = 2 * half; i < 2 * half + 2; ++i) product[i] *= rescaling;
    }
  }

  __device__ __forceinline__ void add_values(const HalfPair (&weights)[kKeyBlocks][2], Partial& partial) const {
    #pragma unroll
    for (int block = 0; block < kKeyBlocks; block += 2) {
      const HalfPair operand[4] = {weights[block][0], weights[block][1], weights[block + 1][0], weights[block + 1][1]};
      const Vector* const from = values() + (8 * block + lane % 16) * kPitch + lane / 16;
      #pragma unroll
      for (int d = 0; d < D / 8; d += 2) {
        const Vector columns = load_matrices_transposed(from + d);
        multiply_16x8x16(partial.y[d], operand, {columns.word[0], columns.word[1]});
        multiply_16x8x16(partial.y[d + 1], operand, {columns.word[2], columns.word[3]});
      }
    }
  }

  __device__ __forceinline__ void attend(Queries& held, Partial& partial) const {
    int positions[2];
    float slopes[2] = {};
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + 16 * warp + row + 8 * half;
      positions[half] = position_of(r);
      if (a.slopes) slopes[half] = load_global(a.slopes + kv_head * share + r % share) * kLog2E;
    }
    #pragma unroll 1
    for (int first = first_key; first < end_key; first += kKeys) {
      wait_for_copies<0>();
      __syncthreads();  // the keys have landed, and nobody needs the values before these any more
      copy_tile(values(), a.value_cache, first);
      Scores scores = {};
      multiply_with_keys(held, scores);
      score(first, positions, slopes, scores);
      wait_for_copies<0>();
      __syncthreads();  // the values have landed, and nobody needs these keys any more
      if (first + kKeys < end_key) copy_tile(keys(), a.key_cache, first + kKeys);
      HalfPair weights[kKeyBlocks][2];
      weigh(scores, partial, weights);
      add_values(weights, partial);
    }
  }

  __device__ __forceinline__ void store(const Partial& partial) const {
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = partial.sum[half];
      for (int mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
      const float factor = 1.0f / sum;
      const int r = first_row + 16 * warp + row + 8 * half;
      if (r >= query_rows) continue;
      const int64_t head = static_cast<int64_t>(r / share) * a.num_heads + kv_head * share + r % share;
      HalfPair* const y = reinterpret_cast<HalfPair*>(a.y + head * D) + quarter;
      #pragma unroll
      for (int block = 0; block < D / 8; ++block) {
        const float* const product = partial.y[block] + 2 * half;
        store_global(y + 4 * block, pair(to_half(product[0] * factor), to_half(product[1] * factor)));
      }
    }
  }

  __device__ __forceinline__ void run() const {
    copy_tile(keys(), a.key_cache, first_key);
    rotate_queries();
    __syncthreads();
    Queries held;
    if constexpr (Shape::kQueriesHeld) {
      #pragma unroll
      for (int step = 0; step < kSteps; ++step) load_queries(step, held[step]);
    }
    Partial partial;
    attend(held, partial);
    store(partial);
  }
};

// A token's keys and values, all heads; past the end of the cache nothing is written.
__device__ __forceinline__ void append(const DecodeAttentionArguments& a) {
  const int token = blockIdx.x, position = static_cast<int>(load_global(a.past_length)) + token;
  if (position >= a.capacity) return;
  for (int i = threadIdx.x; i < a.kv_num_heads * a.head_size; i += kAppendThreads) {
    const int head = i / a.head_size, d = i % a.head_size;
    const int64_t source = static_cast<int64_t>(token) * a.kv_stride + head * a.head_size;
    const int64_t place = (static_cast<int64_t>(head) * a.capacity + position) * a.head_size + d;
    store_global(a.key_cache + place, to_half(rotated(a, a.k + source, d, position)));
    store_global(a.value_cache + place, load_global(a.v + source + d));
  }
}

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kAppendThreads)
append_kv(const edge_awq::DecodeAttentionArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::append(a);
  edge_awq::let_next_kernel_start();
}

#define PREFILL_ATTENTION(D)                                                     \
  extern "C" __global__ void __launch_bounds__(edge_awq::kPrefillThreads, 2)     \
  prefill_attention_##D(const edge_awq::DecodeAttentionArguments a) {            \
    edge_awq::wait_for_previous_kernel();                                        \
    edge_awq::PrefillAttention<D>{a}.run();                                      \
    edge_awq::let_next_kernel_start();                                           \
  }

PREFILL_ATTENTION(64)
PREFILL_ATTENTION(80)
PREFILL_ATTENTION(96)
PREFILL_ATTENTION(112)
PREFILL_ATTENTION(128)
PREFILL_ATTENTION(256)
