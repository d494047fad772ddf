// Int8MatMul as an op: x, qweight, scales, zero_points[, bias] -> y.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

struct Format : GroupedFormat<Int8GemvArguments, 8> {
  static const char* name() { return "Int8MatMul"; }
};

}  // namespace

OpType int8_matmul_op() { return op_type<MatMulOp<Format>>("Int8MatMul"); }

}  // namespace edge_awq
