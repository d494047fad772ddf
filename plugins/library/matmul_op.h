// What the ops that multiply by a weight matrix share; <format>/plugin.cpp says what a format adds.
#pragma once

#include "../common/half.h"
#include "launch.h"
#include "op.h"

namespace edge_awq {

// An address that a plan accepts where there is no tensor yet.
template <class T>
T* placeholder() {
  return reinterpret_cast<T*>(16);
}

// y = x @ W.T + bias. Format has: Arguments, name(), weight_inputs(), check_weight(), set_weight().
//
// Inputs: x fp16 [.., K]; the tensors of W; bias fp16 [N] if has_bias. Output: y [.., N], fp16, or fp32 if fp32_output.
template <class Format>
class MatMulOp final : public Op {
 public:
  using Arguments = typename Format::Arguments;
  enum Value { kK, kN, kHasBias, kFp32Output, kGroupSize };  // the order of attributes()

  static std::vector<Attribute> attributes() {
    std::vector<Attribute> all = {{"K"}, {"N"}, {"has_bias", false, false}, {"fp32_output", false, false}};
    if (Format::kHasGroups) all.push_back({"group_size"});
    return all;
  }

  const char* name() const override { return Format::name(); }
  std::unique_ptr<Op> clone() const override { return std::make_unique<MatMulOp>(*this); }

  std::vector<InputSpec> inputs() const override {
    std::vector<InputSpec> all = {{"x", Type::kFloat16}};
    for (const InputSpec& input : Format::weight_inputs()) all.push_back(input);
    if (has_bias()) all.push_back({"bias", Type::kFloat16});
    return all;
  }

  std::vector<OutputSpec> outputs() const override {
    return {{"y", is_fp32() ? Type::kFloat32 : Type::kFloat16, 0, integer(kN)}};
  }

  std::string check() const override { return plan_for(1).refusal; }

  std::string check(const Shape* shapes) const override {
    const int64_t K = integer(kK), N = integer(kN);
    if (!is_size(shapes[0].last(), K)) return mismatch("x", shapes[0], "[.., %lld]", static_cast<long long>(K));
    if (std::string reason = Format::check_weight(shapes + 1, N, K, group_size()); !reason.empty()) return reason;
    const Shape* const bias = shapes + inputs().size() - 1;
    if (has_bias() && (bias->rank != 1 || !is_size(bias->dims[0], N)))
      return mismatch("bias", *bias, "[%lld]", static_cast<long long>(N));
    const int64_t rows = shapes[0].rows();
    return rows > 0 ? plan_for(rows).refusal : "";
  }

 protected:
  std::string launch(const Call& call) const override {
    Arguments a = shaped(call.shapes[0].rows());
    a.x = static_cast<const Half*>(call.inputs[0]);
    Format::set_weight(a, call.inputs + 1);
    a.bias = has_bias() ? static_cast<const Half*>(call.inputs[inputs().size() - 1]) : nullptr;
    a.y = is_fp32() ? nullptr : static_cast<Half*>(call.outputs[0]);
    a.logits = is_fp32() ? static_cast<float*>(call.outputs[0]) : nullptr;
    return edge_awq::launch(plan(a), a, call.stream);
  }

 private:
  int integer(Value value) const { return static_cast<int>(values[value]); }
  int group_size() const { return Format::kHasGroups ? integer(kGroupSize) : 0; }
  bool has_bias() const { return values[kHasBias] != 0; }
  bool is_fp32() const { return values[kFp32Output] != 0; }

  Arguments shaped(int64_t rows) const {
    Arguments a{};
    a.rows = static_cast<int>(rows);
    a.K = integer(kK);
    a.N = integer(kN);
    Format::set_group_size(a, group_size());
    return a;
  }

  // What would be launched if all tensors were where they should be.
  Launch plan_for(int64_t rows) const {
    Arguments a = shaped(rows);
    const void* const somewhere[] = {placeholder<void>(), placeholder<void>(), placeholder<void>()};
    a.x = placeholder<Half>();
    a.y = placeholder<Half>();
    Format::set_weight(a, somewhere);
    return plan(a);
  }
};

// A format of whole numbers with a scale and a zero point per group; kBits of 4 are packed two a byte.
template <class TheArguments, int kBits>
struct GroupedFormat {
  using Arguments = TheArguments;
  static constexpr bool kHasGroups = true;

  static std::vector<InputSpec> weight_inputs() {
    return {{"qweight", Type::kInt8}, {"scales", Type::kFloat16}, {"zero_points", Type::kInt8}};
  }

  static std::string check_weight(const Shape* shapes, int64_t N, int64_t K, int group_size) {
    const int64_t groups = (K + group_size - 1) / group_size;
    const struct {
      const char* name;
      int64_t columns;
    } wanted[] = {{"qweight", K * kBits / 8}, {"scales", groups}, {"zero_points", (groups * kBits + 7) / 8}};
    for (int i = 0; i < 3; ++i)
      if (shapes[i].rank != 2 || !is_size(shapes[i].dims[0], N) || !is_size(shapes[i].dims[1], wanted[i].columns))
        return mismatch(wanted[i].name, shapes[i], "[%lld, %lld]", static_cast<long long>(N),
                        static_cast<long long>(wanted[i].columns));
    return "";
  }

  static void set_weight(Arguments& a, const void* const* tensors) {
    a.qweight = static_cast<const uint8_t*>(tensors[0]);
    a.scales = static_cast<const Half*>(tensors[1]);
    a.zero_points = static_cast<const uint8_t*>(tensors[2]);
  }

  static void set_group_size(Arguments& a, int group_size) { a.group_size = group_size; }
};

}  // namespace edge_awq
