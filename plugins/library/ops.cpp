#include "ops.h"

namespace edge_awq {

const std::vector<OpType>& op_types() {
  static const std::vector<OpType> all = {
      int4_matmul_op(), int8_matmul_op(), fp16_matmul_op(), cached_attention_op(),
      rms_norm_op(),    layer_norm_op(),  argmax_op(),      token_embedding_op(),
      sample_op(),
  };
  return all;
}

}  // namespace edge_awq
