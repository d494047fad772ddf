// RmsNorm and LayerNorm as ops, with the residual stream's addition: x[, delta], weight[, bias] -> y[, hidden].
#include "../library/launch.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

// x, delta fp16 [.., size]; weight, bias fp32 [size]; y fp16 [.., size]. With has_delta hidden is x + delta, [.., size].
template <bool kIsLayerNorm>
class NormOp final : public Op {
 public:
  enum Value { kEpsilon, kHasDelta, kHasBias };  // the order of attributes()

  static std::vector<Attribute> attributes() {
    std::vector<Attribute> all = {{"epsilon", true}, {"has_delta", false, false}};
    if (kIsLayerNorm) all.push_back({"has_bias", false, false});
    return all;
  }

  const char* name() const override { return kIsLayerNorm ? "LayerNorm" : "RmsNorm"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<NormOp>(*this); }

  std::vector<InputSpec> inputs() const override {
    std::vector<InputSpec> all = {{"x", Type::kFloat16}};
    if (has_delta()) all.push_back({"delta", Type::kFloat16});
    all.push_back({"weight", Type::kFloat32});
    if (has_bias()) all.push_back({"bias", Type::kFloat32});
    return all;
  }

  std::vector<OutputSpec> outputs() const override {
    std::vector<OutputSpec> all = {{"y", Type::kFloat16, 0}};
    if (has_delta()) all.push_back({"hidden", Type::kFloat16, 0});
    return all;
  }

  std::string check() const override {
    if (values[kEpsilon] > 0 && values[kEpsilon] < 1) return "";
    return "epsilon = " + std::to_string(values[kEpsilon]) + ", not between 0 and 1";
  }

  std::string check(const Shape* shapes) const override {
    const Shape& x = shapes[0];
    if (has_delta() && (shapes[1].rank != x.rank || (x.elements() > 0 && !is_size(shapes[1].elements(), x.elements()))))
      return mismatch("delta", shapes[1], "x's %s", to_string(x).c_str());
    for (size_t i = has_delta() ? 2 : 1; i < inputs().size(); ++i)
      if (shapes[i].rank != 1 || (x.last() > 0 && !is_size(shapes[i].dims[0], x.last())))
        return mismatch(inputs()[i].name, shapes[i], "[%lld]", static_cast<long long>(x.last()));
    return x.last() > 0 && x.last() % 8 != 0 ? mismatch("x", x, "[.., a multiple of 8]") : "";
  }

 protected:
  std::string launch(const Call& call) const override {
    const Shape& x = call.shapes[0];
    const void* const* input = call.inputs;
    NormArguments a{};
    a.x = static_cast<const Half*>(*input++);
    if (has_delta()) a.delta = static_cast<const Half*>(*input++);
    a.weight = static_cast<const float*>(*input++);
    if (has_bias()) a.bias = static_cast<const float*>(*input);
    a.y = static_cast<Half*>(call.outputs[0]);
    if (has_delta()) a.hidden = static_cast<Half*>(call.outputs[1]);
    a.rows = static_cast<int>(x.rows());
    a.size = static_cast<int>(x.last());
    a.epsilon = static_cast<float>(values[kEpsilon]);
    return edge_awq::launch(kIsLayerNorm ? plan_layer_norm(a) : plan_rms_norm(a), a, call.stream);
  }

 private:
  bool has_delta() const { return values[kHasDelta] != 0; }
  bool has_bias() const { return kIsLayerNorm && values[kHasBias] != 0; }
};

}  // namespace

OpType rms_norm_op() { return op_type<NormOp<false>>("RmsNorm"); }
OpType layer_norm_op() { return op_type<NormOp<true>>("LayerNorm"); }

}  // namespace edge_awq
