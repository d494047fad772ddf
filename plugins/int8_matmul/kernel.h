// Int8MatMul's kernels as their callers see them.
//
//   W[n, k] = (qweight[n, k] - zero_points[n, k / group_size]) * scales[n, k / group_size]
#pragma once

#include "../common/linear.h"

namespace edge_awq {

// The kernels' only parameter, by value. groups = K / group_size, rounded up.
struct Int8MatMulArguments : Linear {
  const uint8_t* qweight;      // [N, K]
  const Half* scales;          // [N, groups]
  const uint8_t* zero_points;  // [N, groups]
  int group_size;              // 64 or 128
};

}  // namespace edge_awq
