// The fp16 linear's kernels as their callers see them.
#pragma once

#include "../common/linear.h"

namespace edge_awq {

// The kernels' only parameter, by value.
struct Fp16MatMulArguments : Linear {
  const Half* weight;  // [N, K]
};

}  // namespace edge_awq
