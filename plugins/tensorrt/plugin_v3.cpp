// The ops as plugins for TensorRT 10.3 to 11: IPluginV3, found through getCreators().
#include <memory>

#include "../library/capi.h"
#include "../library/ops.h"
#include "adapter.h"
#include "interface10.h"

namespace edge_awq::trt10 {
namespace {

std::vector<Shape> to_shapes(const TensorDesc* tensors, int count) {
  std::vector<Shape> shapes;
  for (int i = 0; i < count; ++i) shapes.push_back(to_shape(tensors[i].dims));
  return shapes;
}

class OpPlugin final : public Plugin, public Core, public Build, public Runtime {
 public:
  OpPlugin(const OpType& type, std::unique_ptr<Op> op) : type_(type), op_(std::move(op)) {}

  // Plugin
  PluginCapability* capability(Capability which) noexcept override {
    switch (which) {
      case Capability::kCore: return static_cast<Core*>(this);
      case Capability::kBuild: return static_cast<Build*>(this);
      case Capability::kRuntime: return static_cast<Runtime*>(this);
    }
    return nullptr;
  }
  Plugin* clone() noexcept override { return new OpPlugin(type_, op_->clone()); }

  // Core
  const char* name() const noexcept override { return op_->name(); }
  const char* version() const noexcept override { return contract_version(); }
  const char* name_space() const noexcept override { return kNamespace; }

  // Build
  int32_t configure(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc*,
                    int32_t out_count) noexcept override {
    std::string reason = count_mismatch(*op_, in_count, out_count);
    for (const auto dims : {+[](const DynamicTensorDesc& d) { return d.desc.dims; },
                            +[](const DynamicTensorDesc& d) { return d.max; }}) {
      if (!reason.empty()) break;
      std::vector<Shape> shapes;
      for (int i = 0; i < in_count; ++i) shapes.push_back(to_shape(dims(in[i])));
      reason = op_->check(shapes.data());
    }
    return report(op_->name(), reason);
  }

  int32_t output_types(int32_t* types, int32_t out_count, const int32_t*, int32_t in_count) const noexcept override {
    if (const int failed = report(op_->name(), count_mismatch(*op_, in_count, out_count))) return failed;
    for (int i = 0; i < out_count; ++i) types[i] = static_cast<int32_t>(op_->outputs()[i].type);
    return 0;
  }

  int32_t output_shapes(const DimsExpressions* in, int32_t in_count, const DimsExpressions*, int32_t,
                        DimsExpressions* out, int32_t out_count, ExpressionBuilder& builder) noexcept override {
    if (const int failed = report(op_->name(), count_mismatch(*op_, in_count, out_count))) return failed;
    for (int i = 0; i < out_count; ++i) {
      const OutputSpec output = op_->outputs()[i];
      out[i] = in[output.like];
      if (out[i].rank < 1 || out[i].rank + output.adds_last > 8)
        return fail(std::string(op_->name()) + ": input " + std::to_string(output.like) + " has " +
                    std::to_string(out[i].rank) + " dimensions");
      if (output.adds_last) ++out[i].rank;
      if (output.last > 0) out[i].sizes[out[i].rank - 1] = builder.maker->constant(output.last);
      if (output.last < 0) --out[i].rank;
    }
    return 0;
  }

  bool supports(int32_t position, const DynamicTensorDesc* in_out, int32_t in_count,
                int32_t out_count) noexcept override {
    return count_mismatch(*op_, in_count, out_count).empty() &&
           is_supported(tensor_types(*op_), position, in_out[position].desc);
  }

  int32_t output_count() const noexcept override { return static_cast<int32_t>(op_->outputs().size()); }

  size_t workspace_bytes(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc*,
                         int32_t) const noexcept override {
    std::vector<Shape> largest;
    for (int i = 0; i < in_count; ++i) largest.push_back(to_shape(in[i].max));
    return op_->workspace_bytes(largest.data());
  }

  int32_t aliased_input(int32_t output) noexcept override {
    const std::vector<OutputSpec> outputs = op_->outputs();
    return output >= 0 && output < static_cast<int>(outputs.size()) ? outputs[output].alias : -1;
  }

  // Runtime
  int32_t on_shape_change(const TensorDesc* in, int32_t in_count, const TensorDesc*,
                          int32_t out_count) noexcept override {
    std::string reason = count_mismatch(*op_, in_count, out_count);
    if (reason.empty()) reason = op_->prepare(to_shapes(in, in_count).data());
    return report(op_->name(), reason);
  }

  int32_t enqueue(const TensorDesc* in_desc, const TensorDesc*, const void* const* in, void* const* out,
                  void* workspace, void* stream) noexcept override {
    const std::vector<Shape> shapes = to_shapes(in_desc, static_cast<int>(op_->inputs().size()));
    return report(op_->name(), op_->enqueue({shapes.data(), in, out, workspace, stream}));
  }

  Plugin* attach(ResourceContext*) noexcept override { return clone(); }

  const FieldCollection* fields_to_serialize() noexcept override {
    const size_t count = type_.attributes.size();
    integers_.assign(op_->values.begin(), op_->values.end());
    floats_.assign(op_->values.begin(), op_->values.end());
    fields_.clear();
    for (size_t i = 0; i < count; ++i) {
      const bool is_float = type_.attributes[i].is_float;
      const void* const data = is_float ? static_cast<const void*>(&floats_[i]) : &integers_[i];
      fields_.push_back({type_.attributes[i].name, data,
                         static_cast<int32_t>(is_float ? FieldType::kFloat32 : FieldType::kInt32), 1});
    }
    fields_.push_back({kContractField, &kContractVersion, static_cast<int32_t>(FieldType::kInt32), 1});
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }

 private:
  const OpType& type_;
  std::unique_ptr<Op> op_;
  std::vector<int32_t> integers_;
  std::vector<float> floats_;
  std::vector<Field> fields_;
  FieldCollection collection_{};
};

class OpCreator final : public Creator {
 public:
  explicit OpCreator(const OpType& type) : type_(type), names_(type) {}

  Plugin* create(const char* layer, const FieldCollection* fields, Phase) noexcept override {
    std::string reason;
    std::unique_ptr<Op> op = create_op(type_.name, fields ? fields->fields : nullptr, fields ? fields->count : 0, reason);
    if (op) return new OpPlugin(type_, std::move(op));
    fail(std::string(type_.name) + " '" + (layer ? layer : "") + "': " + reason);
    return nullptr;
  }
  const FieldCollection* field_names() noexcept override { return names_.get(); }
  const char* name() const noexcept override { return type_.name; }
  const char* version() const noexcept override { return contract_version(); }
  const char* name_space() const noexcept override { return kNamespace; }

 private:
  const OpType& type_;
  FieldNames<FieldCollection, Field> names_;
};

}  // namespace
}  // namespace edge_awq::trt10

// What a registry of TensorRT 10 and 11 asks a plugin library for.
EDGE_AWQ_API edge_awq::trt10::CreatorInterface* const* getCreators(int32_t& count) {
  using namespace edge_awq::trt10;
  static const auto creators = [] {
    std::vector<CreatorInterface*> all;  // for as long as the library is loaded
    for (const edge_awq::OpType& type : edge_awq::op_types()) all.push_back(new OpCreator(type));
    return all;
  }();
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

// TensorRT offers its logger here. See find_logger() in ../library/log.cpp for why it is not taken.
EDGE_AWQ_API void setLoggerFinder(void*) {}
