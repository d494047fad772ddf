// fp16 weights times more rows than a GEMV takes, in particular a prompt. Layout, pipeline and bound are those of
// common/tile.h; how weights become operands stands in format.h.
#include "../common/tile.h"
#include "format.h"

extern "C" __global__ void __launch_bounds__(edge_awq::Fp16Tile16::kThreads, 2)
fp16_matmul_16(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Tile<edge_awq::Fp16Format, edge_awq::Fp16Tile16>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::Fp16Tile32::kThreads, 1)
fp16_matmul_32(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Tile<edge_awq::Fp16Format, edge_awq::Fp16Tile32>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::Fp16Tile64::kThreads, 1)
fp16_matmul_64(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Tile<edge_awq::Fp16Format, edge_awq::Fp16Tile64>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::Fp16Tile128::kThreads, 1)
fp16_matmul_128(const edge_awq::Fp16MatMulArguments a) {
  edge_awq::Tile<edge_awq::Fp16Format, edge_awq::Fp16Tile128>{a}.run();
}
