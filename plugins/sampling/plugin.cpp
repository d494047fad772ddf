// GreedyToken as an op: logits fp32 [.., size] -> tokens int64 [..]. It is not called ArgMax, because TensorRT's parser
// takes a node with a standard op's name for that op, whatever its domain.
//
// SampleToken: logits, settings fp32 [4], seed int64 [1], step int64 [1] -> tokens; kernel.h has their meaning. The
// settings are tensors, so that one engine serves all of them; step may be the cache's past_length.
#include <algorithm>

#include "../library/launch.h"
#include "../library/ops.h"
#include "plan.h"

namespace edge_awq {
namespace {

constexpr int kLogitsPerBlock = 4096;  // 16 per thread
constexpr int kMostSplits = 64;

// What both need of a row's blocks.
class TokenOp : public Op {
 public:
  std::string check() const override { return ""; }
  std::vector<OutputSpec> outputs() const override { return {{"tokens", Type::kInt64, 0, -1}}; }

  size_t workspace_bytes(const Shape* shapes) const override {
    return shapes[0].rows() * splits(shapes[0]) * sizeof(unsigned long long);
  }

  size_t zeroed_bytes(const Shape* shapes) const override { return shapes[0].rows() * sizeof(unsigned); }

 protected:
  template <class Arguments>
  Arguments arguments(const Call& call) const {
    const Shape& logits = call.shapes[0];
    Arguments a{};
    a.logits = static_cast<const float*>(call.inputs[0]);
    a.tokens = static_cast<int64_t*>(call.outputs[0]);
    a.best = static_cast<unsigned long long*>(call.workspace);
    a.finished = zeroed_.get();
    a.rows = static_cast<int>(logits.rows());
    a.size = static_cast<int>(logits.last());
    a.splits = static_cast<int>(splits(logits));
    return a;
  }

 private:
  static int64_t splits(const Shape& logits) {
    return std::clamp<int64_t>((logits.last() + kLogitsPerBlock - 1) / kLogitsPerBlock, 1, kMostSplits);
  }
};

class ArgmaxOp final : public TokenOp {
 public:
  static std::vector<Attribute> attributes() { return {}; }
  const char* name() const override { return "GreedyToken"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<ArgmaxOp>(*this); }
  std::vector<InputSpec> inputs() const override { return {{"logits", Type::kFloat32}}; }

  std::string check(const Shape* shapes) const override {
    return shapes[0].rank < 2 ? mismatch("logits", shapes[0], "[.., rows, size]") : "";
  }

 protected:
  std::string launch(const Call& call) const override {
    const auto a = arguments<ArgmaxArguments>(call);
    return edge_awq::launch(plan(a), a, call.stream);
  }
};

class SampleOp final : public TokenOp {
 public:
  static std::vector<Attribute> attributes() { return {}; }
  const char* name() const override { return "SampleToken"; }
  std::unique_ptr<Op> clone() const override { return std::make_unique<SampleOp>(*this); }
  std::vector<InputSpec> inputs() const override {
    return {{"logits", Type::kFloat32}, {"settings", Type::kFloat32}, {"seed", Type::kInt64}, {"step", Type::kInt64}};
  }

  std::string check(const Shape* shapes) const override {
    if (shapes[0].rank < 2) return mismatch("logits", shapes[0], "[.., rows, size]");
    for (int i = 1; i < 4; ++i) {
      const int size = i == 1 ? kSampleSettings : 1;
      if (shapes[i].rank != 1 || !is_size(shapes[i].dims[0], size))
        return mismatch(inputs()[i].name, shapes[i], "[%d]", size);
    }
    return "";
  }

 protected:
  std::string launch(const Call& call) const override {
    auto a = arguments<SampleArguments>(call);
    a.settings = static_cast<const float*>(call.inputs[1]);
    a.seed = static_cast<const int64_t*>(call.inputs[2]);
    a.step = static_cast<const int64_t*>(call.inputs[3]);
    return edge_awq::launch(plan(a), a, call.stream);
  }
};

}  // namespace

OpType sample_op() { return op_type<SampleOp>("SampleToken"); }
OpType argmax_op() { return op_type<ArgmaxOp>("GreedyToken"); }

}  // namespace edge_awq
