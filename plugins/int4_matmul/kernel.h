// Int4MatMul's kernels as their callers see them.
//
//   W[n, k] = (qweight[n, k] - zero_points[n, k / group_size]) * scales[n, k / group_size]
#pragma once

#include "../common/linear.h"

namespace edge_awq {

// The kernels' only parameter, by value. groups = K / group_size, rounded up.
struct Int4MatMulArguments : Linear {
  const uint8_t* qweight;      // [N, K / 2], two weights a byte along K, low nibble first
  const Half* scales;          // [N, groups]
  const uint8_t* zero_points;  // [N, (groups + 1) / 2], two a byte, low nibble first: each row starts on a byte
  int group_size;              // 64 or 128
};

}  // namespace edge_awq
