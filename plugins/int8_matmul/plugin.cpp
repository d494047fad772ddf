// Int8MatMul as an op: see ../library/matmul_op.h.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

struct Format : GroupedFormat<Int8MatMulArguments, 8> {
  static const char* name() { return "Int8MatMul"; }
};

}  // namespace

OpType int8_matmul_op() { return op_type<MatMulOp<Format>>("Int8MatMul"); }

}  // namespace edge_awq
