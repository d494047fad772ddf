// Int4MatMul as an op: x, qweight, scales, zero_points[, bias] -> y.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

struct Format : GroupedFormat<Int4GemvArguments, 4> {
  static const char* name() { return "Int4MatMul"; }
};

}  // namespace

OpType int4_matmul_op() { return op_type<MatMulOp<Format>>("Int4MatMul"); }

}  // namespace edge_awq
