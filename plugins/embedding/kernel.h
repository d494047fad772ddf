// The embedding's rows of a few tokens, as its callers see it.
//
//   y[i] = table[ids[i]], or table[i] without ids: so a matrix of 4 or 8 bits becomes one of halves
//
// An id outside the vocabulary gives a row of NaNs: nothing else on a device can tell of it.
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernels' only parameter, by value. groups = size / group_size, rounded up.
struct EmbeddingArguments {
  const void* ids;             // [rows], int64 or int32; or null
  const void* table;           // [vocabulary, size]: Half; or uint8; or two values a byte, low nibble first
  const Half* scales;          // [vocabulary, groups], or null for a table of halves
  const uint8_t* zero_points;  // [vocabulary, groups], or two a byte: each row starts on a byte; or null
  Half* y;                     // [rows, size]
  int rows, size, vocabulary;  // vocabulary is rows without ids
  int bits;                    // of a value in the table: 4, 8 or 16
  int group_size;              // 64 or 128; of no matter for halves
  int id_bytes;                // 8 or 4
};

constexpr int kEmbeddingThreads = 256;  // per block; a block has one row

}  // namespace edge_awq
