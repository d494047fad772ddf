// The index of each row's largest logit: a greedy decode loop needs no copy of the logits to the host.
//
// The bound it chases: a vocabulary of 128 k in fp32 is half a megabyte, 0.1 us of an H200's bandwidth, so latency.
#include "argmax.h"
#include "kernel.h"

namespace edge_awq {

struct ArgmaxShared {
  unsigned long long warps[kArgmaxThreads / kWarpSize];
};

__device__ __forceinline__ void find_largest(const ArgmaxArguments& a) {
  using Rows = Argmax<kArgmaxThreads>;
  const int row = blockIdx.x / a.splits, split = blockIdx.x % a.splits;
  Rows::Candidate best;
  const bool is_last = Rows{block_shared<ArgmaxShared>().warps}.find(
      a.logits + static_cast<int64_t>(row) * a.size, a.size, split, a.splits,
      a.best + static_cast<int64_t>(row) * a.splits, a.finished + row, best);
  if (is_last && threadIdx.x == 0) a.tokens[row] = Rows::token_of(best);
}

}  // namespace edge_awq

extern "C" __global__ void __launch_bounds__(edge_awq::kArgmaxThreads) argmax(const edge_awq::ArgmaxArguments a) {
  edge_awq::wait_for_previous_kernel();
  edge_awq::find_largest(a);
  edge_awq::let_next_kernel_start();
}
