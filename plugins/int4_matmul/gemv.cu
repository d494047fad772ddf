// int4 weights times 1 to 8 rows of fp16 activations: one token of decoding, or a few speculated ones.
//
// The bound it chases: every weight is read from memory once, 4.16 bits each (group 128: nibble, 1/128 scale, 1/128
// zero point), so time >= N * K * 4.16 / 8 / bandwidth. To stay below that bound with fp32 accumulation, the sums run
// on tensor cores with the weights as the 16-row operand: one instruction per 8 weights of a lane, whatever the number
// of activation rows, where fp32 lanes would need one per weight and row. What is left is unpacking: about one
// instruction per weight.
//
// Who reads what. A block computes 16 values of N. Its 8 warps take turns along K, 128 weights (a chunk) at a time:
//
//            k = 0       128      256        896      1024
//   n = 0      | warp 0  | warp 1  | ..  | warp 7  | warp 0  | ..
//       ..     |         |         |     |         |         |
//       15     |         |         |     |         |         |
//
// In a chunk a row is 64 bytes. Four lanes read 16 of them each, so that lane 4 * row + quarter reads
//
//   row n (and then row n + 8), bytes   0 .. 15    16 .. 31    32 .. 47    48 .. 63
//   k                                   0 .. 31    32 .. 63    64 .. 95    96 .. 127
//   quarter                                0           1           2           3
//
// How a 32-bit word of them becomes pairs of halves stands in format.h. A product over 16 k takes from each lane four
// weights of either row; which k these are does not matter as long as the activations come in the same order, so the
// weights need no other order in memory than the one they are stored in.
//
// Columns. The tensor core multiplies by a tile of 8 columns. A column is a row of x, zero outside one group, so that
// the sums of a chunk's two groups of 64 stay apart until each is multiplied by its scale:
//
//   column         0       1       2       3       4       5       6       7
//   group 128    x[0]    x[1]    x[2]    x[3]    x[4]    x[5]    x[6]    x[7]
//   group 64     x[0]    x[1]    x[2]    x[3]    x[0]    x[1]    x[2]    x[3]       (x[4] .. x[7]: a second tile)
//                |------ first group -------|    |------ second group ------|
//
// Sums: fp32 over a group on the tensor core, fp32 over groups per warp, then over warps in shared memory, always in
// the same order: the same input gives the same bits.
//
// The variant `_chained` multiplies one row of x in pairs of halves instead, and adds 16 products to either half before
// they go over to fp32: less exact, see README.md, and about as many instructions. A lane has two chains per chunk, one
// for row n and one for row n + 8, and x lies in shared memory, so that it is put in the weights' order once per block.
#include "../common/gemv.h"
#include "format.h"

namespace edge_awq {

constexpr int kChunk = 128;       // weights of a row that a warp multiplies at once
constexpr int kChunkBytes = kChunk / 2;
constexpr int kLaneWeights = 32;  // of those, one lane's: 16 bytes
constexpr int kAhead = 3;         // chunks on their way from memory, 1 KiB each per warp

// Blocks that shall fit a multiprocessor at once. Three have 72 KiB on their way, in 80 registers per thread; two have
// 48 KiB, and 128 registers, which a second tile's activations and norms need. An H200 hides its latency with 28 KiB.
constexpr int kMostBlocks = 3, kFewBlocks = 2;

// How products of unpacked weights and activations are added up, a policy of Int4Gemv. This one: on tensor cores in
// fp32, for up to 8 rows of x.
template <int kGroupSize, int kTiles, bool kNormed>
struct TensorProducts {
  static constexpr int kGroups = kChunk / kGroupSize;  // per chunk
  static constexpr int kTileRows = 8 / kGroups;        // rows of x per tile
  using Sums = float[kTiles][4];
  using Results = GemvSums<kTiles, kTileRows>;
  using Rows = NormedRows<4, Int4Order>;

  Vector x[kTiles][4];
  float products[kTiles][4] = {};

  // What a lane puts into its column of each tile: its 32 values of k of a row of x, or zeros.
  template <class Gemv>
  __device__ __forceinline__ TensorProducts(const Gemv& gemv, int chunk) {
    const int k = gemv.lane_k(chunk);
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = tile * kTileRows + gemv.row % kTileRows;
      const bool feeds = row < gemv.a.rows && gemv.row / kTileRows == gemv.own_group && k < gemv.a.K;
      const Vector* source = reinterpret_cast<const Vector*>(gemv.a.x + (row * gemv.a.K + k));
      for (Vector& each : x[tile]) each = {0, 0, 0, 0};
      if (feeds)
        for (int i = 0; i < 4; ++i)
          x[tile][i] = kNormed ? gemv.x.get(row, chunk * (kChunk / 8), i, gemv.quarter) : source[i];
    }
  }

  // Word i of either row.
  __device__ __forceinline__ void add(int i, const HalfPair (&upper)[4], const HalfPair (&lower)[4]) {
    for (int tile = 0; tile < kTiles; ++tile) {
      const Vector column = kNormed ? x[tile][i] : Int4Order::arranged(x[tile][i]);
      for (int j = 0; j < 4; j += 2)
        multiply_16x8x16(products[tile], {upper[j], lower[j], upper[j + 1], lower[j + 1]},
                         {column.word[j], column.word[j + 1]});
    }
  }

  __device__ __forceinline__ void add_to(Sums& sums, const Half (&scales)[2]) const {
    for (int tile = 0; tile < kTiles; ++tile)
      for (int i = 0; i < 4; ++i)
        sums[tile][i] = multiply_add(to_float(scales[i / 2]), products[tile][i], sums[tile][i]);
  }

  template <class Shared>
  __device__ __forceinline__ static void prepare(const Rows& rows, Shared& shared) {
    if (kNormed) rows.make(shared);
  }
  __device__ __forceinline__ static void finish(const typename Rows::Sums&, Sums&) {}
};

// And this one: in halves, for one row of x, which common/gemv_norm.h brings into a range where they suffice. A lane's
// 32 weights of a row are 16 pairs, and so long are its chains: both halves of a pair go over to fp32 after 16 products.
struct ChainedProducts {
  using Sums = float[1][2];
  using Results = GemvSums<1, 1, 1>;
  using Rows = BoundedRow<4, Int4Order>;
  static_assert(kLaneWeights / 2 * 15 * Rows::kBound < 65504);

  Vector x[4];
  HalfPair chains[2] = {};
  bool is_inside;

  template <class Gemv>
  __device__ __forceinline__ ChainedProducts(const Gemv& gemv, int chunk) : is_inside(chunk < gemv.lane_chunks) {
    for (int i = 0; i < 4; ++i) x[i] = gemv.x.get(chunk * (kChunk / 8), i, gemv.quarter);
  }

  __device__ __forceinline__ void add(int i, const HalfPair (&upper)[4], const HalfPair (&lower)[4]) {
    for (int j = 0; j < 4; ++j) {
      chains[0] = multiply_add(upper[j], x[i].word[j], chains[0]);
      chains[1] = multiply_add(lower[j], x[i].word[j], chains[1]);
    }
  }

  __device__ __forceinline__ void add_to(Sums& sums, const Half (&scales)[2]) const {
    for (int half = 0; half < 2; ++half) {
      const float product = to_float(low(chains[half])) + to_float(high(chains[half]));
      if (is_inside) sums[0][half] = multiply_add(to_float(scales[half]), product, sums[0][half]);
    }
  }

  __device__ __forceinline__ static void prepare(const Rows& rows, Rows::Sums& shared) { rows.make(shared); }

  __device__ __forceinline__ static void finish(const Rows::Sums& shared, Sums& sums) {
    for (float& sum : sums[0]) sum *= shared.unit;
  }
};

template <int kGroupSize, class Products>
struct Int4Gemv {
  static constexpr int kGroups = kChunk / kGroupSize;  // per chunk
  using Shared = GemvShared<typename Products::Results, typename Products::Rows>;
  using Sums = typename Products::Sums;

  // One lane's share of a chunk, as it comes from memory: rows n and n + 8 of W.
  struct Packed {
    Vector weights[2];
    Half scales[2];
    uint32_t zeros[2];  // the zero point is one of the two nibbles
  };

  const Int4MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` of each tile
  const int own_group = quarter * kLaneWeights / kGroupSize;  // of the chunk's groups, the one this lane is in
  const int chunks = (a.K + kChunk - 1) / kChunk;
  const int groups = (a.K + kGroupSize - 1) / kGroupSize, zero_bytes = (groups + 1) / 2;  // per row of W
  const GemvRows rows{a, row};
  const typename Products::Rows x{a};

  // Where this lane reads. Pointers to weights are a chunk behind, so that no offset is negative where in a ragged last
  // chunk the lanes past the end read what those of its first half read.
  const uint8_t* const weights[2] = {row_start(0), row_start(1)};
  const int lane_chunks = opaque(chunks - (lane_k(chunks - 1) < a.K ? 0 : 1));
  const unsigned last_bytes = opaque<unsigned>(chunks * kChunkBytes - (lane_chunks < chunks ? kChunkBytes / 2 : 0));
  const Half* const scales = opaque(a.scales + rows.n[0] * groups);
  const int to_scales[2] = {0, opaque((rows.n[1] - rows.n[0]) * groups)};
  const int first_group = opaque(own_group), last_group = groups - 1;
  const unsigned first_zero[2] = {opaque<unsigned>(rows.n[0] * zero_bytes), opaque<unsigned>(rows.n[1] * zero_bytes)};
  // Groups of 128 are chunks, and a warp has all even ones or all odd ones.
  const int zero_shift = opaque((kGroups == 1 ? threadIdx.x / kWarpSize : own_group) % 2 * 4);

  __device__ __forceinline__ const uint8_t* row_start(int half) const {
    return opaque(a.qweight + static_cast<int64_t>(rows.n[half]) * (a.K / 2) +
                  (quarter * (kLaneWeights / 2) - kChunkBytes));
  }

  __device__ __forceinline__ int lane_k(int chunk) const { return chunk * kChunk + quarter * kLaneWeights; }

  __device__ __forceinline__ Packed load(int chunk) const {
    Packed packed;
    const unsigned bytes = (chunk + 1) * kChunkBytes, inside = bytes < last_bytes ? bytes : last_bytes;
    int group = kGroups == 1 ? chunk : chunk * kGroups + first_group;
    if (kGroups > 1 && group > last_group) group = last_group;
    for (int half = 0; half < 2; ++half) {
      packed.weights[half] = load_streamed(weights[half] + inside);
      packed.scales[half] = load_constant(scales + (group + to_scales[half]));
      packed.zeros[half] = load_constant(a.zero_points + (first_zero[half] + chunk * kGroups / 2u));
    }
    return packed;
  }

  __device__ __forceinline__ void prepare() const { Products::prepare(x, block_shared<Shared>().norm); }

  // Adds the chunk's products, each group's times its scale, to this lane's sums.
  __device__ __forceinline__ void multiply(int chunk, const Packed& packed, Sums& sums) const {
    Products products(*this, chunk);
    const uint32_t zeros[2] = {packed.zeros[0] >> zero_shift & 15u, packed.zeros[1] >> zero_shift & 15u};
    for (int i = 0; i < 4; ++i) {
      HalfPair upper[4], lower[4];
      unpack_int4(packed.weights[0].word[i], zeros[0], upper);
      unpack_int4(packed.weights[1].word[i], zeros[1], lower);
      products.add(i, upper, lower);
    }
    products.add_to(sums, packed.scales);
  }

  __device__ __forceinline__ void run() const {
    auto& shared = block_shared<Shared>();
    Sums sums = {};
    multiply_chunks<kAhead>(*this, chunks, sums);
    Products::finish(shared.norm, sums);
    shared.results.put(sums);
    __syncthreads();
    shared.results.store(a);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kMostBlocks)
int4_gemv_g128(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, edge_awq::TensorProducts<128, 1, false>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g128_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, edge_awq::TensorProducts<128, 1, true>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kMostBlocks)
int4_gemv_g64_rows4(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, edge_awq::TensorProducts<64, 1, false>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g64_rows4_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, edge_awq::TensorProducts<64, 1, true>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g64_rows8(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, edge_awq::TensorProducts<64, 2, false>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g64_rows8_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, edge_awq::TensorProducts<64, 2, true>>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g128_chained(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, edge_awq::ChainedProducts>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kFewBlocks)
int4_gemv_g64_chained(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, edge_awq::ChainedProducts>{a}.run();
}
