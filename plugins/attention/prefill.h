// The blocks of prefill attention, for its kernels and for those who launch them.
#pragma once

#include "kernel.h"

namespace edge_awq {

constexpr int kAppendThreads = 256;  // a block appends a token

constexpr int kPrefillThreads = 128;
constexpr int kPrefillRows = 64;  // query rows (token and head) of a block, 16 per warp

// kScaled: of bytes with scales, which wait in shared memory until they are turned into halves.
template <int D, bool kScaled = false>
struct PrefillShape {
  static constexpr bool kQueriesHeld = D <= 128;      // in registers; wider heads leave no room there
  static constexpr int kKeys = kQueriesHeld ? 64 : 32;  // of a tile
  static constexpr int kPitch = D / 8 + 1;            // vectors from row to row: odd, so that 8 rows meet all banks once
  static constexpr int kTileVectors = kKeys * kPitch;
  // Keys, values, and the queries: in the place of the first values if they move on to registers.
  static constexpr int kQueries = kQueriesHeld ? kTileVectors : 2 * kTileVectors;
  static constexpr int kBytes = kQueries + kPrefillRows * kPitch;
  // A thread copies 16 bytes at a time, four threads those of 64 values: so what they unpack meets all banks once.
  static constexpr int kByteCopies = kKeys * ((D + 63) / 64) * 4 / kPrefillThreads;
  static constexpr int kScales = kBytes + kByteCopies * kPrefillThreads;  // of a tile's keys, then of its values
  static constexpr int kSharedBytes = 16 * (kScaled ? kScales + 2 * kKeys / 4 : kBytes);
};

}  // namespace edge_awq
