// Int4MatMul as an op: see ../library/matmul_op.h.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

struct Format : GroupedFormat<Int4MatMulArguments, 4> {
  static const char* name() { return "Int4MatMul"; }
};

}  // namespace

OpType int4_matmul_op() { return op_type<MatMulOp<Format>>("Int4MatMul"); }

}  // namespace edge_awq
