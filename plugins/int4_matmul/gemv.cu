// int4 weights times 1 to 8 rows of fp16 activations: one token of decoding, or a few speculated ones.
//
// The bound it chases: every weight is read from memory once, 4.16 bits each (group 128: nibble, 1/128 scale, 1/128
// zero point), so time >= N * K * 4.16 / 8 / bandwidth. To stay below that bound with fp32 accumulation, the sums run
// on tensor cores with the weights as the 16-row operand: one instruction per 8 weights of a lane, whatever the number
// of activation rows, where fp32 lanes would need one per weight and row. What is left is unpacking, less than one
// instruction per weight, because zero points are left out of it:
//
//   sum over a group of (q[k] - zero) * x[k]   =   sum of q[k] * x[k]   -   zero * sum of x[k]
//
// The sum of x is the tensor cores' work too, once per 16 rows of W: there x is the 16-row operand, times a matrix of
// equal numbers. q stays q * 2^-24, as format.h unpacks it; the factor is made good at the very end.
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
// the same order: the same input gives the same bits, and a row of x the same ones whatever the rows beside it.
#include "../common/gemv.h"
#include "format.h"

namespace edge_awq {

constexpr int kChunk = 128;       // weights of a row that a warp multiplies at once
constexpr int kChunkBytes = kChunk / 2;
constexpr int kLaneWeights = 32;  // of those, one lane's: 16 bytes

// Blocks that shall fit a multiprocessor at once: two have 48 KiB on their way, or 32 KiB with two tiles, and leave 128
// registers to a thread. An H200 hides its latency with 28 KiB.
constexpr int kBlocks = 2;

// Sums over a group's k for a tile of 8 columns, as the tensor core spreads them over a warp: this lane has rows n and
// n + 8 of W, and columns 2 * quarter and the next.
struct GroupSums {
  float low[4] = {}, high[4] = {};  // of q * x * 2^-24, and of 16 times that: as the weights are unpacked
  float sums_of_x[4] = {};          // of x * 2^-14, by row of x instead: of `row`, even words apart from odd ones

  __device__ __forceinline__ void add(const HalfPair (&upper)[4], const HalfPair (&lower)[4], const Vector& x) {
    multiply_16x8x16(low, {upper[0], lower[0], upper[1], lower[1]}, {x.word[0], x.word[1]});
    multiply_16x8x16(high, {upper[2], lower[2], upper[3], lower[3]}, {x.word[2], x.word[3]});
    constexpr HalfPair kUnits = 0x04000400u;  // 2^-14, the smallest number with all its bits
    multiply_16x8x16(sums_of_x, {x.word[0], x.word[1], x.word[2], x.word[3]}, {kUnits, kUnits});
  }

  // sums += scale * (q - zero) * x * 2^-24; zeros are times 2^-10.
  __device__ __forceinline__ void add_to(float (&sums)[4], const Half (&scales)[2], const float (&zeros)[2]) const {
    const float of_row = sums_of_x[0] + sums_of_x[2];
    const int column = 2 * (threadIdx.x % 4);
    const float of_column[2] = {shuffle(of_row, 4 * column), shuffle(of_row, 4 * column + 4)};
    for (int i = 0; i < 4; ++i) {
      const float product = multiply_add(high[i], 0.0625f, low[i]);
      sums[i] = multiply_add(to_float(scales[i / 2]), multiply_add(-zeros[i / 2], of_column[i % 2], product), sums[i]);
    }
  }
};

template <int kGroupSize, int kTiles, bool kShared>
struct Int4Gemv {
  static constexpr int kGroups = kChunk / kGroupSize;  // per chunk
  static constexpr int kTileRows = 8 / kGroups;        // rows of x per tile
  static constexpr int kAhead = kTiles == 1 ? 3 : 2;   // chunks on their way from memory, 1 KiB each per warp
  using Rows = SharedRows<4, Int4Order>;
  using Shared = GemvShared<GemvSums<kTiles, kTileRows>, Rows>;
  using Sums = float[kTiles][4];

  // One lane's share of a chunk, as it comes from memory: rows n and n + 8 of W.
  struct Loaded {
    Vector weights[2];
    Half scales[2];
    uint32_t zeros[2];  // bytes: the zero point is one of the two nibbles
  };

  // What a lane puts into its column of a tile: its 32 values of k of a row of x, or zeros.
  struct Column {
    bool is_fed;
    typename Rows::template LaneRow<kShared> row;
    Vector x[4];  // stays zeros where it is not fed
  };

  const Int4MatMulArguments& a;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int row = lane / 4, quarter = lane % 4;  // which weights this lane reads; it fills column `row` of each tile
  const int own_group = quarter * kLaneWeights / kGroupSize;  // of the chunk's groups, the one this lane is in
  const int chunks = (a.K + kChunk - 1) / kChunk;
  const int groups = (a.K + kGroupSize - 1) / kGroupSize, zero_bytes = (groups + 1) / 2;  // per row of W
  // In a ragged last chunk the lanes past the end have nothing to read.
  const int missing = opaque((chunks - 1) * kChunk + quarter * kLaneWeights < a.K ? 0 : 1);
  // Groups of 128 are chunks, and a warp has all even ones or all odd ones.
  const int zero_shift = opaque((kGroups == 1 ? warp : own_group) % 2 * 4);
  const Rows shared_rows{a};

  // Where this lane stands: at its part of its warp's next chunk.
  const uint8_t* weights[2];
  const Half* scales[2];
  const uint8_t* zero_points[2];
  Column columns[kTiles];

  __device__ __forceinline__ Int4Gemv(const Int4MatMulArguments& arguments) : a(arguments) {
    const GemvRows rows{a, row};
    for (int half = 0; half < 2; ++half) {
      weights[half] = a.qweight + static_cast<int64_t>(rows.n[half]) * (a.K / 2) + warp * kChunkBytes +
                      quarter * (kLaneWeights / 2);
      scales[half] = a.scales + rows.n[half] * groups + warp * kGroups + own_group;
      zero_points[half] = a.zero_points + rows.n[half] * zero_bytes + warp * kGroups / 2;
    }
    for (int tile = 0; tile < kTiles; ++tile) {
      const int of_x = tile * kTileRows + row % kTileRows;
      columns[tile].is_fed = of_x < a.rows && row / kTileRows == own_group;
      for (Vector& each : columns[tile].x) each = {0, 0, 0, 0};
      columns[tile].row = shared_rows.template lane_row<kShared>(of_x, quarter, warp * 4);
    }
  }

  __device__ __forceinline__ void load(int i, int left, Loaded& loaded) const {
    const int before = i * kGemvWarps;  // chunks
    if (left - missing > before)
      for (int half = 0; half < 2; ++half) loaded.weights[half] = load_streamed(weights[half] + before * kChunkBytes);
    if (left - (kGroups == 1 ? 0 : missing) > before)
      for (int half = 0; half < 2; ++half) {
        loaded.scales[half] = load_constant(scales[half] + before * kGroups);
        loaded.zeros[half] = load_constant(zero_points[half] + before * kGroups / 2);
      }
  }

  __device__ __forceinline__ void advance() {
    constexpr int kBy = kAhead * kGemvWarps;  // chunks
    for (int half = 0; half < 2; ++half) {
      weights[half] += kBy * kChunkBytes;
      scales[half] += kBy * kGroups;
      zero_points[half] += kBy * kGroups / 2;
    }
    for (Column& column : columns) column.row.advance(kBy * 4);
  }

  __device__ __forceinline__ void prepare() const {
    if (kShared) shared_rows.make(block_shared<Shared>().norm);
  }

  __device__ __forceinline__ void load_column(int i, int left, Column& column) const {
    const int before = i * kGemvWarps;  // chunks
    if (kShared) {  // past the end there are zeros
      if (column.is_fed)
        for (int j = 0; j < 4; ++j) column.x[j] = column.row.get(before * 4 + j);
      return;
    }
    const bool is_inside = column.is_fed && left - missing > before;
    for (int j = 0; j < 4; ++j) column.x[j] = is_inside ? column.row.get(before * 4 + j) : Vector{0, 0, 0, 0};
  }

  // A zero point times 2^-10: 2^13 + that has it in its lowest bits.
  __device__ __forceinline__ float zero_point(uint32_t both) const {
    return as_float(and_or(both >> zero_shift, 15u, 0x46000000u)) - 0x1p13f;
  }

  // Adds the chunk's products, each group's times its scale, to this lane's sums.
  __device__ __forceinline__ void multiply(int i, int left, const Loaded& loaded, Sums& sums) {
    GroupSums group_sums[kTiles];
    for (Column& column : columns) load_column(i, left, column);
    for (int j = 0; j < 4; ++j) {
      HalfPair upper[4], lower[4];  // of rows n and n + 8
      unpack_int4_unsigned(loaded.weights[0].word[j], upper);
      unpack_int4_unsigned(loaded.weights[1].word[j], lower);
      for (int tile = 0; tile < kTiles; ++tile) group_sums[tile].add(upper, lower, columns[tile].x[j]);
    }
    const float zeros[2] = {zero_point(loaded.zeros[0]), zero_point(loaded.zeros[1])};
    for (int tile = 0; tile < kTiles; ++tile) group_sums[tile].add_to(sums[tile], loaded.scales, zeros);
  }

  __device__ __forceinline__ void run() {
    auto& shared = block_shared<Shared>().results;
    Sums sums = {};
    multiply_chunks<kAhead>(*this, chunks, sums);
    for (auto& tile : sums)
      for (float& sum : tile) sum *= 0x1p24f;
    shared.put(sums);
    __syncthreads();
    shared.store(a);
  }
};

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g128(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, 1, true>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g128_long(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<128, 1, false>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g64_rows4(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 1, true>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g64_rows4_long(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 1, false>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g64_rows8(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 2, true>(a).run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::kGemvThreads, edge_awq::kBlocks)
int4_gemv_g64_rows8_long(const edge_awq::Int4MatMulArguments a) {
  edge_awq::Int4Gemv<64, 2, false>(a).run();
}
