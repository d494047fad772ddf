// All ops there are: a new one adds its line here and in ops.cpp.
#pragma once

#include "op.h"

namespace edge_awq {

template <class AnOp>
OpType op_type(const char* name) {
  return {name, AnOp::attributes(), []() -> std::unique_ptr<Op> { return std::make_unique<AnOp>(); }};
}

OpType int4_matmul_op();
OpType int8_matmul_op();
OpType fp16_matmul_op();
OpType cached_attention_op();
OpType rms_norm_op();
OpType layer_norm_op();
OpType argmax_op();
OpType token_embedding_op();
OpType sample_op();

}  // namespace edge_awq
