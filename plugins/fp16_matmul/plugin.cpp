// Fp16MatMul as an op: see ../library/matmul_op.h. Not in the contract: in a graph this is a MatMul.
#include "../library/matmul_op.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

struct Format {
  using Arguments = Fp16MatMulArguments;
  static constexpr int kBits = 16;
  static constexpr bool kHasGroups = false;

  static const char* name() { return "Fp16MatMul"; }
  static std::vector<InputSpec> weight_inputs() { return {{"weight", Type::kFloat16}}; }

  static std::string check_weight(const Shape* shapes, int64_t N, int64_t K, int) {
    if (shapes[0].rank == 2 && is_size(shapes[0].dims[0], N) && is_size(shapes[0].dims[1], K)) return "";
    return mismatch("weight", shapes[0], "[%lld, %lld]", static_cast<long long>(N), static_cast<long long>(K));
  }

  static void set_weight(Arguments& a, const void* const* tensors) { a.weight = static_cast<const Half*>(tensors[0]); }
  static void set_group_size(Arguments&, int) {}
};

}  // namespace

OpType fp16_matmul_op() { return op_type<MatMulOp<Format>>("Fp16MatMul"); }

}  // namespace edge_awq
