// Attention of 1 to 8 new tokens over the cache: rotary positions, append to the cache and softmax in one launch.
//
// The bound it chases: each key and value is read once, so time >= 4 * kv_num_heads * length * head_size / bandwidth;
// where they are bytes (cache.h), with their scales, 2 * kv_num_heads * length * (head_size + 4) / bandwidth.
//
// Who computes what. A query row is one head of one new token. All rows that share a KV head lie in one block (if they
// are 72 or fewer), so that its keys and values come from memory once however many they are. The cache is split over
// `splits` blocks; block = ((KV head) * groups + group of query rows) * splits + split. In a block a warp has a tile of
// 8 query rows, and up to 4 warps share a tile and take turns along the keys, 16 at a time.
//
// Both products run on tensor cores, with the keys or values as the 16-row operand a and the query rows as 8 columns.
// With row = lane / 4 and quarter = lane % 4, every load is 16 bytes, in the order in which the cache lies:
//
//   scores [16 keys, 8 queries]: lane reads keys `row` and `row + 8`, 8 values at 8 * quarter of each 32.
//                                Words 0 and 1 are one product's operand, words 2 and 3 the next one's.
//   y      [64 d, 8 queries]:    lane reads keys 2 * quarter + {0, 8, 1, 9}, 8 values at 8 * row of each 64.
//                                Word j of keys 0 and 8 (of 1 and 9) turns into two pairs over keys, for d = 2 j and
//                                2 j + 1; these are rows `row` and `row + 8` of product j.
//
// Of bytes there are twice as many: 16 values at 16 * quarter of each 64, or at 16 * row of each 128, and every word is
// two words of halves.
//
// The scores leave the first product as (keys row and row + 8) x (queries 2 * quarter and the next), which is how sums
// and maxima of the softmax are held as well as y: rescaling needs no exchange. As weights of the second product they
// must lie as (query row) x (keys 2 * quarter + {0, 8}, {1, 9}): one exchange within the warp.
//
// A split gives each warp at least one tile of keys; of a short cache some splits have none, and their blocks return at
// once. So one grid, fixed in a CUDA graph, serves every length.
//
// Sums are fp32; the weights, 0 to 1, are rounded to fp16, and it is the rounded ones that are added up, unless they
// are multiplied by scales. Warps are merged in shared memory, splits by the block that finishes last, always in the
// same order: same input, same bits.
#include "cache.h"

namespace edge_awq {

constexpr int kKeyTile = 16;

// kAdjusted: with slopes or a soft-cap.
template <int D, bool kAdjusted, class Cache>
struct DecodeAttention {
  using Element = typename Cache::Element;
  static constexpr int kLaneValues = Cache::kLaneValues, kWordValues = Cache::kWordValues;
  static constexpr int kProducts = kLaneValues / 2;  // of a panel
  static constexpr int kChunkValues = 4 * kLaneValues, kChunks = (D + kChunkValues - 1) / kChunkValues;  // of a key
  static constexpr int kPanelValues = 8 * kLaneValues, kPanels = (D + kPanelValues - 1) / kPanelValues;  // of a value
  static constexpr bool kCrowded = kAdjusted && D > 128 && !Cache::kScaled;
  static constexpr int kAhead = kCrowded ? kPanels - 1 : kPanels;  // loaded before the keys are used
  static constexpr int kMaxTiles = D <= 128 ? kMaxQueryTiles : kMaxWideQueryTiles;

  // A softmax under way, of 8 query rows over some of the keys. Exponents are powers of two.
  struct Partial {
    float maximum[kQueryTile], sum[kQueryTile], y[kQueryTile][D];
  };

  // First the rotated queries, then, when all warps hold theirs in registers, what the warps have found.
  struct Shared {
    union {
      Half queries[kMaxTiles * kQueryTile][D];
      Partial warps[kMaxTiles];
    };
    float slopes[kMaxTiles * kQueryTile];  // of the query rows, times log2 e
  };

  // What a lane holds of one: of query rows 2 * quarter and the next, the keys and the d that lie with it.
  struct LanePartial {
    float maximum[2] = {kNothingSeen, kNothingSeen}, sum[2] = {}, y[kPanels][kProducts][4] = {};
  };

  // Of a lane's queries, 16 bytes each.
  using Queries = Vector[kChunks][kLaneValues / 8];

  // Of keys `row` and `row + 8` of a tile.
  struct Scales {
    float key[2], value[2];
  };

  const DecodeAttentionArguments& a;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row = lane / 4, quarter = lane % 4;

  const int share = a.num_heads / a.kv_num_heads, query_rows = a.tokens * share;  // of a KV head
  const int all_tiles = (query_rows + kQueryTile - 1) / kQueryTile;
  const int groups = (all_tiles + kMaxTiles - 1) / kMaxTiles, tiles = (all_tiles + groups - 1) / groups;
  const int split = blockIdx.x % a.splits, group = blockIdx.x / a.splits % groups;
  const int kv_head = blockIdx.x / a.splits / groups;
  const int first_row = group * tiles * kQueryTile;  // of this block's query rows
  const int own_rows = at_most(query_rows - first_row, tiles * kQueryTile);
  const int slices = tiles >= kMinWarps ? 1 : kMinWarps / tiles;  // warps that share a tile
  const int tile = warp / slices, slice = warp % slices;          // warps past the last tile only help to load

  const int past = past_tokens(a), length = at_most(past + a.tokens, a.capacity);
  const int first_visible = a.window && past + 1 > a.window ? past + 1 - a.window : 0;
  const int key_tiles = (length - first_visible + kKeyTile - 1) / kKeyTile;
  const int split_keys = at_least((key_tiles + a.splits - 1) / a.splits, slices) * kKeyTile;
  const int first_key = at_most(first_visible + split * split_keys, length);
  const int end_key = at_most(first_key + split_keys, length);
  Element* const keys = static_cast<Element*>(a.key_cache) + static_cast<int64_t>(kv_head) * a.capacity * D;
  Element* const values = static_cast<Element*>(a.value_cache) + static_cast<int64_t>(kv_head) * a.capacity * D;

  __device__ __forceinline__ bool is_own(int position) const { return position >= first_key && position < end_key; }

  // Writes the new tokens' keys and values into the cache, as far as they lie in this block's split: it alone reads
  // them. (Blocks of other query groups write the same bytes there.)
  __device__ __forceinline__ void append() const {
    if constexpr (Cache::kScaled) {
      for (int i = warp; i < 2 * a.tokens; i += blockDim.x / kWarpSize)
        if (is_own(past + i / 2)) append_row<D>(a, i / 2, kv_head, past + i / 2, i % 2);
    } else {
      for (int i = threadIdx.x; i < a.tokens * D; i += blockDim.x)
        if (is_own(past + i / D)) append_value(a, i / D, kv_head, past + i / D, i % D);
    }
  }

  __device__ __forceinline__ void rotate_queries(Shared& shared) const {
    for (int i = threadIdx.x; i < tiles * kQueryTile * D; i += blockDim.x) {
      const int r = first_row + i / D, token = r / share;
      const Half* head = a.q + static_cast<int64_t>(token) * a.q_stride + (kv_head * share + r % share) * D;
      const bool real = i / D < own_rows;
      shared.queries[i / D][i % D] = real ? to_half(rotated(a, head, i % D, at_most(past + token, length - 1))) : Half{0};
    }
  }

  // 16 bytes of a cached row that exist, or zeros.
  __device__ __forceinline__ static Vector load(const Element* rows, int key, int end, int d) {
    const bool exists = key < end && d < D;
    return exists ? load_vector(rows + static_cast<int64_t>(key) * D + d) : Vector{0, 0, 0, 0};
  }

  __device__ __forceinline__ void load_slopes(Shared& shared) const {
    for (int i = threadIdx.x; i < tiles * kQueryTile; i += blockDim.x)
      shared.slopes[i] = a.slopes ? kLog2E * load_global(a.slopes + kv_head * share + (first_row + i) % share) : 0.0f;
  }

  // Powers of two of the scores of 16 keys: scores[i] is that of key first + row + 8 * (i / 2) and the lane's query
  // i % 2, and minus infinity where the query does not see the key.
  __device__ __forceinline__ void score(int first, const Queries& queries, const Scales& scales,
                                        float (&scores)[4]) const {
    Vector upper[kChunks], lower[kChunks];
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      upper[chunk] = load(keys, first + row, end_key, kChunkValues * chunk + kLaneValues * quarter);
      lower[chunk] = load(keys, first + row + 8, end_key, kChunkValues * chunk + kLaneValues * quarter);
    }
    for (int chunk = 0; chunk < kChunks; ++chunk)
      for (int i = 0; i < kLaneValues / 2; i += 2) {  // of the lane's pairs of values
        HalfPair above[2], below[2];
        Cache::unpack(upper[chunk], i, above);
        Cache::unpack(lower[chunk], i, below);
        const Vector& query = queries[chunk][i / 4];
        multiply_16x8x16(scores, {above[0], below[0], above[1], below[1]}, {query.word[i % 4], query.word[i % 4 + 1]});
      }
    const float* const slopes = block_shared<Shared>().slopes + tile * kQueryTile + 2 * quarter;
    for (int i = 0; i < 4; ++i) scores[i] *= a.scale * kLog2E * scales.key[i / 2];
    if (kAdjusted && a.softcap != 0.0f)
      for (int i = 0; i < 4; ++i) scores[i] = capped(scores[i], a.softcap);
    for (int i = 0; i < 4; ++i) {
      const int key = first + row + 8 * (i / 2);
      const int position = past + (first_row + tile * kQueryTile + 2 * quarter + i % 2) / share;
      if (kAdjusted) scores[i] = multiply_add(slopes[i % 2], static_cast<float>(key - position), scores[i]);
      const bool visible = key < end_key && key <= position && (a.window == 0 || key > position - a.window);
      if (!visible) scores[i] = minus_infinity();
    }
  }

  // Softmax weights relative to the new maximum, as pairs of keys row and row + 8; what was summed before is rescaled.
  __device__ __forceinline__ static void weigh(const float (&scores)[4], const Scales& scales, LanePartial& partial,
                                               HalfPair (&weights)[2]) {
    for (int query = 0; query < 2; ++query) {
      float maximum = larger(partial.maximum[query], larger(scores[query], scores[query + 2]));
      for (int mask = 4; mask < kWarpSize; mask *= 2) maximum = larger(maximum, shuffle_xor(maximum, mask));
      const float rescaling = power_of_two(partial.maximum[query] - maximum);
      const auto upper = Cache::weigh(scores[query] - maximum, scales.value[0]);
      const auto lower = Cache::weigh(scores[query + 2] - maximum, scales.value[1]);
      partial.maximum[query] = maximum;
      partial.sum[query] = multiply_add(partial.sum[query], rescaling, upper.counted() + lower.counted());
      for (auto& panel : partial.y)
        for (auto& product : panel)
          for (int i = query; i < 4; i += 2) product[i] *= rescaling;
      weights[query] = pair(upper.operand, lower.operand);
    }
  }

  // Adds the weighted values of 16 keys.
  __device__ __forceinline__ void add_values(const Vector (&loaded)[kPanels][4], const HalfPair (&weights)[2],
                                             LanePartial& partial) const {
    HalfPair column[2];
    for (int i = 0; i < 2; ++i) {
      const int source = 4 * (2 * quarter + i) + row / 2;  // the lane that holds keys 2 * quarter + i and 8 on
      const HalfPair even = shuffle(weights[0], source), odd = shuffle(weights[1], source);
      column[i] = row % 2 ? odd : even;
    }
    for (int panel = 0; panel < kPanels; ++panel) {
      const Vector(&v)[4] = loaded[panel];
      for (int j = 0; j < 4; ++j) {
        HalfPair even[kWordValues], odd[kWordValues];  // keys 0 and 8, 1 and 9
        Cache::pair_keys(v[0].word[j], v[1].word[j], even);
        Cache::pair_keys(v[2].word[j], v[3].word[j], odd);
        for (int i = 0; i < kWordValues; i += 2)
          multiply_16x8x16(partial.y[panel][(j * kWordValues + i) / 2], {even[i], even[i + 1], odd[i], odd[i + 1]},
                           column);
      }
    }
  }

  __device__ __forceinline__ void load_values(int first, int panel, int end, Vector (&loaded)[kPanels][4]) const {
    for (; panel < end; ++panel)
      for (int i = 0; i < 4; ++i)
        loaded[panel][i] = load(values, first + 2 * quarter + i / 2 + i % 2 * 8, end_key,
                                kPanelValues * panel + kLaneValues * row);
  }

  __device__ __forceinline__ Scales load_scales(int first) const {
    Scales scales;
    for (int i = 0; i < 2; ++i) {
      const int key = first + row + 8 * i;
      const int64_t place = static_cast<int64_t>(kv_head) * a.capacity + key;
      scales.key[i] = Cache::load_scale(a.key_scales + place, key < end_key);
      scales.value[i] = Cache::load_scale(a.value_scales + place, key < end_key);
    }
    return scales;
  }

  // This warp's share of the split.
  __device__ __forceinline__ void attend(const Queries& queries, LanePartial& partial) const {
    #pragma unroll 1
    for (int first = first_key + slice * kKeyTile; first < end_key; first += slices * kKeyTile) {
      Vector loaded[kPanels][4];
      load_values(first, 0, kAhead, loaded);
      const Scales scales = load_scales(first);
      float scores[4] = {};
      score(first, queries, scales, scores);
      load_values(first, kAhead, kPanels, loaded);
      HalfPair weights[2];
      weigh(scores, scales, partial, weights);
      add_values(loaded, weights, partial);
    }
    for (float& sum : partial.sum)
      for (int mask = 4; mask < kWarpSize; mask *= 2) sum += shuffle_xor(sum, mask);
  }

  __device__ __forceinline__ void put(const LanePartial& partial, Partial& shared) const {
    for (int i = 0; i < 4; ++i) {
      const int query = 2 * quarter + i % 2;
      if (row == 0) shared.maximum[query] = partial.maximum[i % 2];  // every row has the same
      if (row == 0) shared.sum[query] = partial.sum[i % 2];
      for (int panel = 0; panel < kPanels; ++panel)
        for (int j = 0; j < kProducts; ++j) {
          const int d = kPanelValues * panel + kLaneValues * row + 2 * j + i / 2;
          if (d < D) shared.y[query][d] = partial.y[panel][j][i];
        }
    }
  }

  // The place of a split's share of a query row in the workspace: y, then maximum and sum.
  __device__ __forceinline__ float* workspace(int r, int of_split) const {
    return a.partial + ((static_cast<int64_t>(kv_head) * query_rows + r) * a.splits + of_split) * (D + 2);
  }

  __device__ __forceinline__ void store(int r, int d, float value) const {
    const int token = r / share, head = kv_head * share + r % share;
    store_global(a.y + (static_cast<int64_t>(token) * a.num_heads + head) * D + d, to_half(value));
  }

  // How many splits have keys. From memory: kept through the loop over keys, it would be a register too many.
  __device__ __forceinline__ int count_splits() const {
    const int visible = at_most(opaque(past) + a.tokens, a.capacity) - opaque(first_visible);
    return (visible + split_keys - 1) / split_keys;
  }

  // Merges the warps of each tile; stores the result, or, if there are other splits, this split's share of it.
  __device__ __forceinline__ void merge_warps(const Shared& shared, int used_splits) const {
    for (int i = threadIdx.x; i < own_rows * D; i += blockDim.x) {
      const int r = i / D, d = i % D, query = r % kQueryTile;
      const Partial* warps = shared.warps + r / kQueryTile * slices;
      float maximum = kNothingSeen, sum = 0.0f, y = 0.0f;
      for (int s = 0; s < slices; ++s) maximum = larger(maximum, warps[s].maximum[query]);
      for (int s = 0; s < slices; ++s) {
        const float weight = power_of_two(warps[s].maximum[query] - maximum);
        sum = multiply_add(warps[s].sum[query], weight, sum);
        y = multiply_add(warps[s].y[query][d], weight, y);
      }
      if (used_splits == 1) {
        store(first_row + r, d, y / sum);
        continue;
      }
      float* place = workspace(first_row + r, split);
      store_global(place + d, y);
      if (d == 0) store_global(place + D, maximum);
      if (d == 0) store_global(place + D + 1, sum);
    }
  }

  // The block that finishes last merges the splits.
  __device__ __forceinline__ void merge_splits(int used_splits) const {
    for (int i = threadIdx.x; i < own_rows * D; i += blockDim.x) {
      const int r = first_row + i / D, d = i % D;
      float maximum = kNothingSeen, sum = 0.0f, y = 0.0f;
      for (int s = 0; s < used_splits; ++s) maximum = larger(maximum, load_global(workspace(r, s) + D));
      for (int s = 0; s < used_splits; ++s) {
        const float* place = workspace(r, s);
        const float weight = power_of_two(load_global(place + D) - maximum);
        sum = multiply_add(load_global(place + D + 1), weight, sum);
        y = multiply_add(load_global(place + d), weight, y);
      }
      store(r, d, y / sum);
    }
  }

  __device__ __forceinline__ void run() const {
    if (first_key >= length) return;
    Shared& shared = block_shared<Shared>();
    append();
    rotate_queries(shared);
    if (kAdjusted) load_slopes(shared);
    __syncthreads();
    Queries queries;
    for (int chunk = 0; chunk < kChunks && tile < tiles; ++chunk)
      for (int i = 0; i < kLaneValues / 8; ++i) {
        const int d = kChunkValues * chunk + kLaneValues * quarter + 8 * i;
        const Half* const query = shared.queries[tile * kQueryTile + row];
        queries[chunk][i] = d < D ? *reinterpret_cast<const Vector*>(query + d) : Vector{0, 0, 0, 0};
      }
    __syncthreads();
    if (tile < tiles) {
      LanePartial partial;
      attend(queries, partial);
      put(partial, shared.warps[warp]);
    }
    __syncthreads();
    const int used_splits = count_splits();
    merge_warps(shared, used_splits);
    if (used_splits == 1 || !is_last_block(a.finished + kv_head * groups + group, used_splits)) return;
    merge_splits(used_splits);
  }
};

}  // namespace edge_awq

// Without the 1 the compiler saves registers by spilling some.
#define DECODE_ATTENTION(D, suffix, is_adjusted, Cache)                                                \
  extern "C" __global__ void                                                                           \
  __launch_bounds__(32 * edge_awq::DecodeAttention<D, is_adjusted, edge_awq::Cache>::kMaxTiles, 1)     \
  decode_attention_##D##suffix(const edge_awq::DecodeAttentionArguments a) {                           \
    edge_awq::wait_for_previous_kernel();                                                              \
    edge_awq::DecodeAttention<D, is_adjusted, edge_awq::Cache>{a}.run();                               \
    edge_awq::let_next_kernel_start();                                                                 \
  }

#define DECODE_ATTENTIONS(D)                               \
  DECODE_ATTENTION(D, , false, HalfCache)                  \
  DECODE_ATTENTION(D, _adjusted, true, HalfCache)          \
  DECODE_ATTENTION(D, _kv8, false, ByteCache)              \
  DECODE_ATTENTION(D, _adjusted_kv8, true, ByteCache)

DECODE_ATTENTIONS(64)
DECODE_ATTENTIONS(80)
DECODE_ATTENTIONS(96)
DECODE_ATTENTIONS(112)
DECODE_ATTENTIONS(128)
DECODE_ATTENTIONS(256)
