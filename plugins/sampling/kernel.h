// The greedy choice of the next token, on the device, as its callers see it.
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value.
struct ArgmaxArguments {
  const float* logits;       // [rows, size]
  int64_t* tokens;           // [rows], where each row's largest logit is: the first if several, the first NaN if any
  unsigned long long* best;  // [rows, splits]
  unsigned* finished;        // [rows], zero before the first launch and after each
  int rows, size;
  int splits;                // blocks per row
};

constexpr int kArgmaxThreads = 256;  // per block

}  // namespace edge_awq
