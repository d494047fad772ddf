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
// Where the cache is bytes (cache.h), copies bring these to a place of their own, where every thread finds what it
// copied itself and turns it into the halves of the tile. A scale for each key comes along by way of a register.
//
// Sums are fp32; the weights, 0 to 1, are rounded to fp16, and it is the rounded ones that are added up, unless they
// are multiplied by scales. Every row is summed in the order of its keys: same input, same bits.
#include "cache.h"
#include "prefill.h"

namespace edge_awq {

template <int D, class Cache>
struct PrefillAttention {
  using Element = typename Cache::Element;
  using Shape = PrefillShape<D, Cache::kScaled>;
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
  const int past = past_tokens(a);
  const int first_position = past + first_row / share;
  const int last_position = past + (at_most(first_row + kPrefillRows, query_rows) - 1) / share;
  const int end_key = at_most(last_position + 1, at_most(past + a.tokens, a.capacity));
  const int first_key = a.window && first_position + 1 > a.window ? first_position + 1 - a.window : 0;

  __device__ __forceinline__ Vector* keys() const { return shared; }
  __device__ __forceinline__ Vector* values() const { return shared + Shape::kTileVectors; }
  __device__ __forceinline__ Vector* queries() const { return shared + Shape::kQueries; }

  __device__ __forceinline__ int position_of(int r) const { return past + at_most(r, query_rows - 1) / share; }

  __device__ __forceinline__ Vector* bytes() const { return shared + Shape::kBytes + threadIdx.x; }
  __device__ __forceinline__ float* key_scales() const { return reinterpret_cast<float*>(shared + Shape::kScales); }
  __device__ __forceinline__ float* value_scales() const { return key_scales() + kKeys; }

  // A tile on its way: keys or values, where they go, and the scale of one of them.
  struct Tile {
    Vector* to;
    float* scales;
    float scale;
  };

  // Which 16 bytes of a tile of bytes a thread's copy n is: values d and on of a key. Four threads have 64 values.
  struct Piece {
    int key, d;
  };
  __device__ __forceinline__ static Piece piece(int n) {
    const int i = threadIdx.x + n * kPrefillThreads;
    return {i / 4 % kKeys, i / 4 / kKeys * 64 + i % 4 * 16};
  }

  // A tile of a cache, which is contiguous there; zeros for keys that nobody sees.
  __device__ __forceinline__ void copy_halves(Vector* to, const Element* from, int first) const {
    #pragma unroll
    for (int n = 0; n < kCopies; ++n) {
      const int i = threadIdx.x + n * kPrefillThreads, key = i / (D / 8);
      copy_streamed_to_shared(to + key * kPitch + i % (D / 8), from + i * 8, first + key >= end_key);
    }
  }

  __device__ __forceinline__ void copy_bytes(const Element* from, int first) const {
    #pragma unroll
    for (int n = 0; n < Shape::kByteCopies; ++n) {
      const Piece p = piece(n);
      if (p.d < D)
        copy_streamed_to_shared(bytes() + n * kPrefillThreads, from + p.key * D + p.d, first + p.key >= end_key);
    }
  }

  __device__ __forceinline__ Tile copy_tile(Vector* to, const void* cache, float* scales, const float* from,
                                            int first) const {
    const int64_t place = static_cast<int64_t>(kv_head) * a.capacity + first;
    const Element* const tile = static_cast<const Element*>(cache) + place * D;
    Tile copied{to, scales, 0.0f};
    if constexpr (Cache::kScaled) {
      const int key = threadIdx.x;
      copy_bytes(tile, first);
      copied.scale = Cache::load_scale(from + place + key, key < kKeys && first + key < end_key);
    } else {
      copy_halves(to, tile, first);
    }
    commit_copies();
    return copied;
  }
  __device__ __forceinline__ Tile copy_keys(int first) const {
    return copy_tile(keys(), a.key_cache, key_scales(), a.key_scales, first);
  }
  __device__ __forceinline__ Tile copy_values(int first) const {
    return copy_tile(values(), a.value_cache, value_scales(), a.value_scales, first);
  }

  // Returns once the tile is there for all threads.
  __device__ __forceinline__ void wait_for(const Tile& tile) const {
    wait_for_copies<0>();
    if constexpr (Cache::kScaled) {
      #pragma unroll
      for (int n = 0; n < Shape::kByteCopies; ++n) {
        const Piece p = piece(n);
        if (p.d < D) unpack(load_shared(bytes() + n * kPrefillThreads), tile.to + p.key * kPitch + p.d / 8);
      }
      if (threadIdx.x < kKeys) store_shared(tile.scales + threadIdx.x, tile.scale);
    }
    __syncthreads();
  }

  __device__ __forceinline__ static void unpack(const Vector& bytes, Vector* halves) {
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
      HalfPair pairs[4];
      Cache::unpack(bytes, 4 * i, *reinterpret_cast<HalfPair(*)[2]>(pairs));
      Cache::unpack(bytes, 4 * i + 2, *reinterpret_cast<HalfPair(*)[2]>(pairs + 2));
      store_shared(halves + i, Vector{pairs[0], pairs[1], pairs[2], pairs[3]});
    }
  }

  // Of the two neighbouring keys 8 * block + 2 * quarter and the next of a tile.
  struct Scales {
    float of[2];
  };
  __device__ __forceinline__ Scales scales_of(const float* scales, int block) const {
    if constexpr (!Cache::kScaled) return {1.0f, 1.0f};
    return load_shared(reinterpret_cast<const Scales*>(scales) + 4 * block + quarter);
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
    for (int block = 0; block < kKeyBlocks; ++block) {
      const Scales scales = scales_of(key_scales(), block);
      for (int i = 0; i < 4; ++i) scores[block][i] *= a.scale * kLog2E * scales.of[i % 2];
    }
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
  __device__ __forceinline__ void weigh(const Scores& scores, Partial& partial,
                                        HalfPair (&weights)[kKeyBlocks][2]) const {
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = partial.maximum[half], sum = 0.0f;
      #pragma unroll
      for (const auto& block : scores) maximum = larger(maximum, larger(block[2 * half], block[2 * half + 1]));
      for (int mask = 1; mask < 4; mask *= 2) maximum = larger(maximum, shuffle_xor(maximum, mask));
      #pragma unroll
      for (int block = 0; block < kKeyBlocks; ++block) {
        const Scales scales = scales_of(value_scales(), block);
        const auto first = Cache::weigh(scores[block][2 * half] - maximum, scales.of[0]);
        const auto second = Cache::weigh(scores[block][2 * half + 1] - maximum, scales.of[1]);
        weights[block][half] = pair(first.operand, second.operand);
        sum += first.counted() + second.counted();  // asked for late: sm_90 has no register left
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

  __device__ __forceinline__ void attend(Queries& held, Tile fresh, Partial& partial) const {
    int positions[2];
    float slopes[2] = {};
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + 16 * warp + row + 8 * half;
      positions[half] = position_of(r);
      if (a.slopes) slopes[half] = load_global(a.slopes + kv_head * share + r % share) * kLog2E;
    }
    #pragma unroll 1
    for (int first = first_key; first < end_key; first += kKeys) {
      wait_for(fresh);  // the keys; nobody needs the values before these any more
      fresh = copy_values(first);
      Scores scores = {};
      multiply_with_keys(held, scores);
      score(first, positions, slopes, scores);
      wait_for(fresh);  // the values; nobody needs these keys any more
      if (first + kKeys < end_key) fresh = copy_keys(first + kKeys);
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
    const Tile first_keys = copy_keys(first_key);
    rotate_queries();
    __syncthreads();
    Queries held;
    if constexpr (Shape::kQueriesHeld) {
      #pragma unroll
      for (int step = 0; step < kSteps; ++step) load_queries(step, held[step]);
    }
    Partial partial;
    attend(held, first_keys, partial);
    store(partial);
  }
};

// A token's keys and values, all heads; past the end of the cache nothing is written.
template <class Cache>
__device__ __forceinline__ void append(const DecodeAttentionArguments& a) {
  const int token = blockIdx.x, position = past_tokens(a) + token;
  if (position >= a.capacity) return;
  if constexpr (Cache::kScaled) {
    for (int i = threadIdx.x / kWarpSize; i < 2 * a.kv_num_heads; i += kAppendThreads / kWarpSize)
      append_row<kMostHeadSize>(a, token, i / 2, position, i % 2);
  } else {
    for (int i = threadIdx.x; i < a.kv_num_heads * a.head_size; i += kAppendThreads)
      append_value(a, token, i / a.head_size, position, i % a.head_size);
  }
}

}  // namespace edge_awq

#define APPEND(name, Cache)                                                      \
  extern "C" __global__ void __launch_bounds__(edge_awq::kAppendThreads)         \
  name(const edge_awq::DecodeAttentionArguments a) {                             \
    edge_awq::wait_for_previous_kernel();                                        \
    edge_awq::append<edge_awq::Cache>(a);                                        \
    edge_awq::let_next_kernel_start();                                           \
  }

#define PREFILL_ATTENTION(D, suffix, Cache)                                      \
  extern "C" __global__ void __launch_bounds__(edge_awq::kPrefillThreads, 2)     \
  prefill_attention_##D##suffix(const edge_awq::DecodeAttentionArguments a) {    \
    edge_awq::wait_for_previous_kernel();                                        \
    edge_awq::PrefillAttention<D, edge_awq::Cache>{a}.run();                     \
    edge_awq::let_next_kernel_start();                                           \
  }

#define PREFILL_ATTENTIONS(suffix, Cache)  \
  PREFILL_ATTENTION(64, suffix, Cache)   \
  PREFILL_ATTENTION(80, suffix, Cache)   \
  PREFILL_ATTENTION(96, suffix, Cache)   \
  PREFILL_ATTENTION(112, suffix, Cache)  \
  PREFILL_ATTENTION(128, suffix, Cache)  \
  PREFILL_ATTENTION(256, suffix, Cache)

APPEND(append_kv, HalfCache)
APPEND(append_kv8, ByteCache)

PREFILL_ATTENTIONS(, HalfCache)
PREFILL_ATTENTIONS(_kv8, ByteCache)
