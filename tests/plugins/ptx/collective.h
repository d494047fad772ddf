// Instructions that lanes execute together: branches, barriers, shuffles, ldmatrix and the tensor cores' product.
#pragma once

#include "decode.h"
#include "numbers.h"

namespace ptx {

inline void no_operation(Warp&, const Instruction&, uint32_t) {}

// "bar.red.or": the machine hands out the result once all have come.
inline void note_or(Warp& warp, const Instruction& in, uint32_t mask) {
  if (warp.predicate(in.slots[1]) & mask) warp.block->barrier_or = true;
}

// "shfl.sync", its pseudocode: c has the last lane in bits 0 to 4, and the mask of a segment in 8 to 12. Who would read
// beyond its segment keeps its own.
template <bool is_butterfly>
void shuffle(Warp& warp, const Instruction& in, uint32_t mask) {
  uint32_t before[kWarpSize];
  std::memcpy(before, warp.at<uint32_t>(in.slots[2]), sizeof before);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    const uint32_t b = warp.at<uint32_t>(in.slots[3])[lane] & 31u, c = warp.at<uint32_t>(in.slots[4])[lane];
    const uint32_t segment = c >> 8 & 31u, last = (lane & segment) | (c & 31u & ~segment);
    uint32_t from = is_butterfly ? lane ^ b : (lane & segment) | (b & ~segment);
    const bool is_within = from <= last;
    if (!is_within) from = lane;
    if (!(mask >> from & 1u)) throw Fault("reads lane " + std::to_string(from) + ", which takes no part");
    warp.at<uint32_t>(in.slots[0])[lane] = before[from];
    uint32_t& found = warp.predicate(in.slots[1]);
    found = (found & ~(1u << lane)) | static_cast<uint32_t>(is_within) << lane;
  }
}

template <bool is_butterfly>
void decode_shuffle(Decoder& decoder) {
  decoder.expect_operands(5);
  const auto& results = decoder.names(0, 2);
  decoder.writes(results[0], 32);
  decoder.writes(results[1], 1);
  for (size_t i = 1; i < 5; ++i) decoder.reads(decoder.plain(i), 32);
  decoder.instruction.flow = Flow::kShuffle;
  decoder.instruction.execute = shuffle<is_butterfly>;
}

// "ldmatrix": lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i. A lane gets, in register i, two elements
// of row lane / 4 of matrix i, at 2 * (lane % 4); with .trans, of column lane / 4.
template <bool is_transposed>
void load_matrices(Warp& warp, const Instruction& in, uint32_t) {
  uint16_t rows[kWarpSize][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    warp.block->lane = lane;
    const uint64_t address = warp.at<uint32_t>(in.slots[4])[lane] + static_cast<uint64_t>(in.number);
    std::memcpy(rows[lane], warp.block->shared.read(address, 16, warp.first + static_cast<unsigned>(lane)), 16);
  }
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int along = lane / 4, across = 2 * (lane % 4);
      const auto element = [&](int row, int column) { return rows[8 * matrix + row][column]; };
      const uint32_t low = is_transposed ? element(across, along) : element(along, across);
      const uint32_t high = is_transposed ? element(across + 1, along) : element(along, across + 1);
      warp.at<uint32_t>(in.slots[matrix])[lane] = low | high << 16;
    }
}

template <bool is_transposed>
void decode_matrices(Decoder& decoder) {
  decoder.expect_operands(2);
  for (const std::string& name : decoder.names(0, 4)) decoder.writes(name, 32);
  decoder.address(1);
  if (decoder.instruction.is_address_wide) decoder.wrong("the address has not 32 bits");
  decoder.instruction.flow = Flow::kAligned;
  decoder.instruction.execute = load_matrices<is_transposed>;
}

// ---- mma.m16n8k16 with halves, and sums in fp32 ----

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

// What of a factor counts in its product's exponent: a subnormal half's is that of the smallest normal one.
struct Factor {
  float value;
  int exponent;
};

inline Factor factor(uint16_t half) {
  const int biased = half >> 10 & 31;
  return {float_of(half), (biased ? biased : 1) - 15};
}

// One sum, as tensor cores are known to take it (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021): exact
// products and the sum before are aligned to the largest exponent of any, cut to 24 bits, added, and the result is cut
// to fp32. Neither factors nor products are normalized first, which is the worst that is known or feared; the hardware
// keeps a bit or two more, and adds 8 products at a time on some.
inline float cut_sum(const Factor* a, const Factor* b, float c) {
  int largest = std::numeric_limits<int>::min();
  for (int k = 0; k < kDepth; ++k)
    if (a[k].value != 0 && b[k].value != 0) largest = std::max(largest, a[k].exponent + b[k].exponent);
  if (largest == std::numeric_limits<int>::min()) return c;
  if (c != 0) largest = std::max(largest, std::max(std::ilogb(c), -126));
  const float scale = bits_as<float>(static_cast<uint32_t>(127 + 23 - largest) << 23);
  int32_t sum = static_cast<int32_t>(c * scale);
  for (int k = 0; k < kDepth; ++k) sum += static_cast<int32_t>(a[k].value * b[k].value * scale);
  uint32_t size = static_cast<uint32_t>(sum < 0 ? -sum : sum);
  if (size >> 24) size &= ~0u << (8 - __builtin_clz(size));
  return std::ldexp(sum < 0 ? -static_cast<float>(size) : static_cast<float>(size), largest - 23);
}

inline float product(const Factor* a, const Factor* b, float c, bool rounds_once) {
  double sum = c;
  for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[k].value) * b[k].value;
  if (rounds_once || !std::isfinite(sum)) return canonical(static_cast<float>(sum));
  return cut_sum(a, b, c);
}

// "Matrix fragments for mma.m16n8k16": of a lane with groupID = lane / 4 and thread = lane % 4, a_i has row groupID, 8
// more for i in 2, 3, 6, 7, and column 2 thread + i % 2, 8 more for i >= 4; b_i row 2 thread + i % 2, 8 more for i >= 2,
// and column groupID; c_i row groupID, 8 more for i >= 2, and column 2 thread + i % 2. Of a and b two are in a register.
inline void multiply(Warp& warp, const Instruction& in, uint32_t) {
  Factor a[kRows][kDepth], b[kColumns][kDepth];
  const auto half = [&](size_t slot, int lane, int i) {
    return static_cast<uint16_t>(warp.at<uint32_t>(in.slots[slot + static_cast<size_t>(i / 2)])[lane] >> (16 * (i % 2)));
  };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[group + (i / 2 % 2 ? 8 : 0)][2 * thread + i % 2 + (i >= 4 ? 8 : 0)] = factor(half(4, lane, i));
    for (int i = 0; i < 4; ++i) b[group][2 * thread + i % 2 + (i >= 2 ? 8 : 0)] = factor(half(8, lane, i));
  }
  for (int lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
      const float c = warp.at<float>(in.slots[10 + static_cast<size_t>(i)])[lane];
      warp.at<float>(in.slots[static_cast<size_t>(i)])[lane] =
          product(a[row], b[column], c, warp.block->launch->rounds_once);
    }
}

inline void decode_multiply(Decoder& decoder) {
  decoder.expect_operands(4);
  for (const std::string& name : decoder.names(0, 4)) decoder.writes(name, 32);
  for (size_t operand = 1; operand < 4; ++operand)
    for (const std::string& name : decoder.names(operand, operand == 2 ? 2 : 4)) decoder.reads(name, 32);
  decoder.instruction.flow = Flow::kAligned;
  decoder.instruction.execute = multiply;
}

inline void decode_branch(Decoder& decoder) {
  decoder.expect_operands(1);
  decoder.target(0);
  decoder.instruction.flow = Flow::kBranch;
}

inline void decode_barrier(Decoder& decoder) {
  decoder.expect_operands(1);
  if (decoder.number(0) != 0) decoder.wrong("a barrier other than 0");
  decoder.instruction.flow = Flow::kBarrier;
  decoder.instruction.execute = no_operation;
}

inline void decode_barrier_or(Decoder& decoder) {
  decoder.expect_operands(3);
  if (decoder.number(1) != 0) decoder.wrong("a barrier other than 0");
  decoder.writes(decoder.plain(0), 1);
  decoder.reads(decoder.plain(2), 1);
  decoder.instruction.flow = Flow::kBarrier;
  decoder.instruction.execute = note_or;
}

inline void add_collective(Opcodes& table) {
  table["bra"] = table["bra.uni"] = decode_branch;
  table["ret"] = [](Decoder& decoder) { decoder.instruction.flow = Flow::kExit; };
  table["bar.sync"] = decode_barrier;
  table["bar.red.or.pred"] = decode_barrier_or;
  table["shfl.sync.bfly.b32"] = decode_shuffle<true>;
  table["shfl.sync.idx.b32"] = decode_shuffle<false>;
  table["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = decode_matrices<false>;
  table["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = decode_matrices<true>;
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = decode_multiply;
}

}  // namespace ptx
