// The blocks of prefill attention, for its kernels and for those who launch them.
#pragma once

#include "kernel.h"

namespace edge_awq {

constexpr int kAppendThreads = 256;  // a block appends a token

constexpr int kPrefillThreads = 128;
constexpr int kPrefillRows = 64;  // query rows (token and head) of a block, 16 per warp

template <int D>
struct PrefillShape {
  static constexpr bool kQueriesHeld = D <= 128;      // in registers; wider heads leave no room there
  static constexpr int kKeys = kQueriesHeld ? 64 : 32;  // of a tile
  static constexpr int kPitch = D / 8 + 1;            // vectors from row to row: odd, so that 8 rows meet all banks once
  static constexpr int kTileVectors = kKeys * kPitch;
  // Keys, values, and the queries: in the place of the first values if they move on to registers.
  static constexpr int kQueries = kQueriesHeld ? kTileVectors : 2 * kTileVectors;
  static constexpr int kSharedBytes = 16 * (kQueries + kPrefillRows * kPitch);
};

}  // namespace edge_awq
