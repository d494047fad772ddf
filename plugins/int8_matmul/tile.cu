// int8 weights times more rows than a GEMV takes. Layout, pipeline and bound are those of
// common/tile.h; how weights become operands stands in format.h.
#include "../common/tile.h"
#include "format.h"

extern "C" __global__ void __launch_bounds__(edge_awq::Int8Tile16::kThreads, 2)
int8_matmul_16(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Tile<edge_awq::Int8Format, edge_awq::Int8Tile16>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::Int8Tile32::kThreads, 1)
int8_matmul_32(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Tile<edge_awq::Int8Format, edge_awq::Int8Tile32>{a}.run();
}

extern "C" __global__ void __launch_bounds__(edge_awq::Int8Tile64::kThreads, 1)
int8_matmul_64(const edge_awq::Int8MatMulArguments a) {
  edge_awq::Tile<edge_awq::Int8Format, edge_awq::Int8Tile64>{a}.run();
}
