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
#include "../common/gemv.h"
#include "format.h"

namespace edge_awq {

constexpr int kChunk = 128;       // weights of a row that a warp multiplies at once
constexpr int kLaneWeights = 32;  // of those, one lane's: 16 bytes
constexpr int kAhead = 3;         // chunks on their way from memory, 1 KiB each per warp

// Blocks that shall fit a multiprocessor at once. Three have 72 KiB on their way, in 80 registers per thread; two have
// 48 KiB, and 128 registers, which a second tile's activations and norms need. An H200 hides its latency with 28 KiB.
template <int kTiles, bool kNormed>
constexpr int kBlocksPerSm = kTiles == 1 && !kNormed ? 3 : 2;

template <int kGroupSize, int kTiles, bool kNormed>
struct Int4Gemv {
  static constexpr int kGroups = kChunk / kGroupSize;  // per chunk
  static constexpr int kTileRows = 8 / kGroups;        // rows of x per tile

  using Normed = NormedRows<4, Int4Order>;
  using Shared = GemvShared<GemvSums<kTiles, kTileRows>, Normed>;

  // One lane's share of a chunk, as it comes from memory: rows n and n + 8 of W.
  struct Packed {
    Vector weights[2];
    Half scales[2];
    uint8_t zeros[2];  // the zero point is one of the two nibbles
  };

  const Int4MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` of each tile
  const int own_group = quarter * kLaneWeights / kGroupSize;  // of the chunk's groups, the one this lane is in
  const int chunks = (a.K + kChunk - 1) / kChunk;
  const int groups = (a.K + kGroupSize - 1) / kGroupSize, zero_bytes = (groups + 1) / 2;  // per row of W
  const GemvRows rows{a, row};
  const Normed normed{a};
  const uint8_t* const weights[2] = {row_start(0), row_start(1)};  // this lane's first 16 bytes
  const int first_scale[2] = {rows.n[0] * groups, rows.n[1] * groups};
  const int first_zero[2] = {opaque(rows.n[0] * zero_bytes), opaque(rows.n[1] * zero_bytes)};

  __device__ __forceinline__ const uint8_t* row_start(int half) const {
    return opaque(a.qweight + static_cast<int64_t>(rows.n[half]) * (a.K / 2) + quarter * (kLaneWeights / 2));
  }

  // In a ragged last chunk the lanes past the end read what those of its first half read; their activations are zero.
  __device__ __forceinline__ Packed load(int chunk) const {
    Packed packed;
    const int k = chunk * kChunk + quarter * kLaneWeights, inside = k < a.K ? k : k - kChunk / 2;
    const int group = inside / kGroupSize;
    for (int half = 0; half < 2; ++half) {
      packed.weights[half] = load_streamed(weights[half] + (chunk * (kChunk / 2) - (k < a.K ? 0 : kChunk / 4)));
      packed.scales[half] = load_constant(a.scales + first_scale[half] + group);
      packed.zeros[half] = load_constant(a.zero_points + first_zero[half] + group / 2);
    }
    return packed;
  }

  // What this lane puts into its column of a tile: its 32 values of k of a row of x, or zeros.
  __device__ __forceinline__ void load_activations(int chunk, int tile, Vector (&x)[4]) const {
    const int x_row = tile * kTileRows + row % kTileRows, k = chunk * kChunk + quarter * kLaneWeights;
    const bool feeds = x_row < a.rows && row / kTileRows == own_group && k < a.K;
    const Vector* source = reinterpret_cast<const Vector*>(a.x + (x_row * a.K + k));
    for (Vector& each : x) each = {0, 0, 0, 0};
    if (feeds)
      for (int i = 0; i < 4; ++i) x[i] = kNormed ? normed.get(x_row, chunk * (kChunk / 8), i, quarter) : source[i];
  }

  __device__ __forceinline__ void prepare() const {
    if (kNormed) normed.make(block_shared<Shared>().norm);
  }

  // Adds the chunk's products, each group's times its scale, to this lane's sums.
  __device__ __forceinline__ void multiply(int chunk, const Packed& packed, float (&sums)[kTiles][4]) const {
    Vector x[kTiles][4];
    for (int tile = 0; tile < kTiles; ++tile) load_activations(chunk, tile, x[tile]);
    const int shift = (kGroups == 1 ? chunk : own_group) % 2 * 4;
    const uint32_t zeros[2] = {packed.zeros[0] >> shift & 15u, packed.zeros[1] >> shift & 15u};
    float products[kTiles][4] = {};
    for (int i = 0; i < 4; ++i) {
      HalfPair upper[4], lower[4];
      unpack_int4(packed.weights[0].word[i], zeros[0], upper);
      unpack_int4(packed.weights[1].word[i], zeros[1], lower);
      for (int tile = 0; tile < kTiles; ++tile) {
        const Vector column = kNormed ? x[tile][i] : Int4Order::arranged(x[tile][i]);
        for (int j = 0; j < 4; j += 2)
          multiply_16x8x16(products[tile], {upper[j], lower[j], upper[j + 1], lower[j + 1]},
                           {column.word[j], column.word[j + 1]});
      }
    }
    for (int tile = 0; tile < kTiles; ++tile)
      for (int i = 0; i < 4; ++i)
        sums[tile][i] = multiply_add(to_float(packed.scales[i / 2]), products[tile][i], sums[tile][i]);
  }

  __device__ __forceinline__ void run() const {
    auto& shared = block_shared<Shared>().results;
    float sums[kTiles][4] = {};
    multiply_chunks<kAhead>(*this, chunks, sums);
    shared.put(sums);
    __syncthreads();
    shared.store(a);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<1, false>)
int4_gemv_g128(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, 1, false>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<1, true>)
int4_gemv_g128_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, 1, true>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<1, false>)
int4_gemv_g64_rows4(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 1, false>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<1, true>)
int4_gemv_g64_rows4_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 1, true>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<2, false>)
int4_gemv_g64_rows8(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 2, false>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocksPerSm<2, true>)
int4_gemv_g64_rows8_normed(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 2, true>{a}.run();
}
