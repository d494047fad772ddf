// What the ops that multiply by a weight matrix share; <format>/plugin.cpp says what a format adds.
#pragma once

#include <algorithm>

#include "../common/linear.h"
#include "dequantized.h"
#include "launch.h"
#include "modules.h"
#include "op.h"

namespace edge_awq {

// An address that a plan accepts where there is no tensor yet.
template <class T>
T* some_address() {
  return reinterpret_cast<T*>(16);
}

// What ../common/linear.h computes. Format has: Arguments, name(), weight_inputs(), check_weight(), set_weight(),
// kBits, set_group_size().
//
// Inputs: x fp16 [.., K]; the tensors of W; then, each if an attribute asks for it: norm_weight fp32 [K] (norm is 1 for
// RMS, 2 for a layer norm), norm_bias fp32 [K] (has_norm_bias), bias fp16 [N] (has_bias), act_scale fp32 [outputs]
// (has_act_scale), residual fp16 [.., outputs] (has_residual). Output: y [.., outputs], fp16, or fp32 if fp32_output;
// outputs is N, or N / 2 if gated. activation: as linear.h counts them.
template <class Format>
class MatMulOp final : public Op {
 public:
  using Arguments = typename Format::Arguments;
  // The order of attributes().
  enum Value {
    kK, kN, kHasBias, kFp32Output, kNorm, kNormEpsilon, kHasNormBias, kActivation, kGated, kHasActScale, kHasResidual,
    kGroupSize, kDequantizeFrom
  };

  static std::vector<Attribute> attributes() {
    std::vector<Attribute> all = {{"K"}, {"N"}};
    for (const char* name : {"has_bias", "fp32_output", "norm"}) all.push_back({name, false, false});
    all.push_back({"norm_epsilon", true, false, 1e-5});
    for (const char* name : {"has_norm_bias", "activation", "gated", "has_act_scale", "has_residual"})
      all.push_back({name, false, false});
    if (Format::kHasGroups) all.push_back({"group_size"});
    if (Format::kHasGroups) all.push_back({"dequantize_from", false, false});
    return all;
  }

  const char* name() const override { return Format::name(); }
  std::unique_ptr<Op> clone() const override { return std::make_unique<MatMulOp>(*this); }

  std::vector<InputSpec> inputs() const override {
    std::vector<InputSpec> all = {{"x", Type::kFloat16}};
    for (const InputSpec& input : Format::weight_inputs()) all.push_back(input);
    for (const Extra& extra : extras()) all.push_back({extra.name, extra.type});
    return all;
  }

  std::vector<OutputSpec> outputs() const override {
    return {{"y", is(kFp32Output) ? Type::kFloat32 : Type::kFloat16, 0, output_size()}};
  }

  std::string check() const override {
    if (from() < -1) return refusal("dequantize_from = %d, not a number of rows, 0 for never or -1 as predicted", from());
    return plan_for(1).refusal;
  }

  std::string check(const Shape* shapes) const override {
    const int64_t K = integer(kK);
    if (!is_size(shapes[0].last(), K)) return mismatch("x", shapes[0], "[.., %lld]", static_cast<long long>(K));
    if (std::string reason = Format::check_weight(shapes + 1, integer(kN), K, group_size()); !reason.empty())
      return reason;
    const Shape* shape = shapes + 1 + Format::weight_inputs().size();
    for (const Extra& extra : extras()) {
      const int rank = extra.has_rows ? shapes[0].rank : 1;
      const bool has_all_rows = !extra.has_rows || is_size(shape->rows(), shapes[0].rows()) || shapes[0].rows() < 1;
      if (shape->rank != rank || !is_size(shape->last(), extra.size) || !has_all_rows)
        return mismatch(extra.name, *shape, extra.has_rows ? "[.., %lld]" : "[%lld]",
                        static_cast<long long>(extra.size));
      ++shape;
    }
    const int64_t rows = shapes[0].rows();
    return rows > 0 ? plan_for(rows).refusal : shapes[0].dims[0] == 0 ? "x has no rows" : "";
  }

  size_t workspace_bytes(const Shape* shapes) const override {
    const auto partial_bytes = [](const auto& a) { return partial_floats(a) * static_cast<int64_t>(sizeof(float)); };
    const auto of_halves = [&](const Fp16MatMulArguments& a) { return dequantized_bytes(a) + partial_bytes(a); };
    Device device = device_or_any();
    int64_t found = 0;
    for (const int multiprocessors : device.all_multiprocessors()) {
      device.multiprocessors = multiprocessors;
      found = std::max(found, most(shapes, device, partial_bytes, of_halves));
    }
    return found;
  }

  size_t zeroed_bytes(const Shape* shapes) const override {
    const auto count = [](const auto& a) -> int64_t { return counters(a); };
    return most(shapes, device_or_any(), count, count) * sizeof(unsigned);
  }

 protected:
  std::string launch(const Call& call) const override {
    const Device device = device_or_any();
    Arguments a = split(call.shapes[0].rows(), device);
    a.x = static_cast<const Half*>(call.inputs[0]);
    Format::set_weight(a, call.inputs + 1);
    set_extras(a, call.inputs + 1 + Format::weight_inputs().size());
    a.y = is(kFp32Output) ? nullptr : static_cast<Half*>(call.outputs[0]);
    a.logits = is(kFp32Output) ? static_cast<float*>(call.outputs[0]) : nullptr;
    a.partial = static_cast<float*>(call.workspace);
    a.finished = zeroed_.get();
    if constexpr (Format::kHasGroups)
      if (dequantizes(a, from(), device.compute_capability, Format::kBits))
        return launch_dequantized(a, Format::kBits, device.multiprocessors, call.workspace, call.stream);
    return edge_awq::launch(plan(a), a, call.stream);
  }

 private:
  // An input that an attribute asks for.
  struct Extra {
    const char* name;
    Type type;
    int64_t size;
    bool has_rows = false;
  };

  std::vector<Extra> extras() const {
    std::vector<Extra> all;
    if (is(kNorm)) all.push_back({"norm_weight", Type::kFloat32, integer(kK)});
    if (is(kHasNormBias)) all.push_back({"norm_bias", Type::kFloat32, integer(kK)});
    if (is(kHasBias)) all.push_back({"bias", Type::kFloat16, integer(kN)});
    if (is(kHasActScale)) all.push_back({"act_scale", Type::kFloat32, output_size()});
    if (is(kHasResidual)) all.push_back({"residual", Type::kFloat16, output_size(), true});
    return all;
  }

  void set_extras(Arguments& a, const void* const* input) const {
    if (is(kNorm)) a.norm_weight = static_cast<const float*>(*input++);
    if (is(kHasNormBias)) a.norm_bias = static_cast<const float*>(*input++);
    if (is(kHasBias)) a.bias = static_cast<const Half*>(*input++);
    if (is(kHasActScale)) a.act_scale = static_cast<const float*>(*input++);
    if (is(kHasResidual)) a.residual = static_cast<const Half*>(*input++);
  }

  int integer(Value value) const { return static_cast<int>(values[value]); }
  bool is(Value value) const { return values[value] != 0; }
  int group_size() const { return Format::kHasGroups ? integer(kGroupSize) : 0; }
  int output_size() const { return is(kGated) ? integer(kN) / 2 : integer(kN); }

  Arguments shaped(int64_t rows) const {
    Arguments a{};
    a.rows = static_cast<int>(rows);
    a.K = integer(kK);
    a.N = integer(kN);
    a.norm = static_cast<NormKind>(integer(kNorm));
    a.norm_epsilon = static_cast<float>(values[kNormEpsilon]);
    a.activation = static_cast<Activation>(integer(kActivation));
    a.gated = is(kGated);
    a.splits = 1;
    Format::set_group_size(a, group_size());
    return a;
  }

  int from() const { return Format::kHasGroups ? integer(kDequantizeFrom) : 0; }

  // With as many splits as give every multiprocessor work.
  Arguments split(int64_t rows, const Device& device) const {
    Arguments a = shaped(rows);
    a.splits = best_splits(a, device.multiprocessors);
    return a;
  }

  // The most for any number of rows up to that, in one launch or in two. All that share a tile need the same, and tiles
  // have 16, 32, 64 or multiples of 128 rows.
  template <class Need, class NeedOfHalves>
  int64_t most(const Shape* shapes, const Device& device, Need need, NeedOfHalves need_of_halves) const {
    const int64_t last = std::max<int64_t>(shapes[0].rows(), 1);
    const auto at = [&](int64_t rows) -> int64_t {
      const Arguments a = split(rows, device);
      if (!dequantizes(a, from(), device.compute_capability, Format::kBits)) return need(a);
      return std::max<int64_t>(need(a), need_of_halves(with_halves(a, nullptr, device.multiprocessors)));
    };
    int64_t found = at(last);
    for (int64_t rows = 16; rows < last; rows += std::min<int64_t>(rows, 128)) found = std::max(found, at(rows));
    return found;
  }

  // What would be launched if all tensors were where they should be.
  Launch plan_for(int64_t rows) const {
    Arguments a = shaped(rows);
    const void* const somewhere[8] = {some_address<void>(), some_address<void>(), some_address<void>(),
                                      some_address<void>(), some_address<void>()};
    a.x = some_address<Half>();
    a.y = some_address<Half>();
    Format::set_weight(a, somewhere);
    set_extras(a, somewhere);
    return plan(a);
  }
};

// A format of whole numbers with a scale and a zero point per group; kBits of 4 are packed two a byte.
template <class TheArguments, int kBits_>
struct GroupedFormat {
  using Arguments = TheArguments;
  static constexpr int kBits = kBits_;
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
