// The ops as plugins for TensorRT 8.6: IPluginV2DynamicExt, found through getPluginCreators().
//
// 8.6 has no 64-bit integers: a tensor of them travels as INT32 with one more dimension, the two words of each number,
// low word first. 8.6 has no word for outputs that overwrite inputs either: both are bound to one address.
#include <cstring>
#include <memory>

#include "../library/capi.h"
#include "../library/modules.h"
#include "../library/ops.h"
#include "adapter.h"
#include "interface8.h"

namespace edge_awq::trt8 {
namespace {

constexpr char kMagic[8] = {'e', 'd', 'g', 'e', '.', 'a', 'w', 'q'};

// What an engine keeps of a plugin: this, and `count` doubles.
struct Header {
  char magic[8];
  int32_t contract_version, count;
};

Type travelling_type(Type type) { return type == Type::kInt64 ? Type::kInt32 : type; }

std::vector<Type> travelling_types(const Op& op) {
  std::vector<Type> types = tensor_types(op);
  for (Type& type : types) type = travelling_type(type);
  return types;
}

// The shapes as the op knows them.
template <class DimsOf>
std::vector<Shape> to_shapes(const Op& op, int count, DimsOf dims_of) {
  const std::vector<InputSpec> inputs = op.inputs();
  std::vector<Shape> shapes;
  for (int i = 0; i < count; ++i) {
    shapes.push_back(to_shape(dims_of(i)));
    if (inputs[i].type == Type::kInt64 && shapes[i].rank > 0) --shapes[i].rank;
  }
  return shapes;
}

class OpPlugin final : public Plugin {
 public:
  OpPlugin(std::unique_ptr<Op> op, std::string name_space) : op_(std::move(op)), name_space_(std::move(name_space)) {}

  const char* name() const noexcept override { return op_->name(); }
  const char* version() const noexcept override { return contract_version(); }
  const char* name_space() const noexcept override { return name_space_.c_str(); }
  void set_name_space(const char* name) noexcept override { name_space_ = name ? name : ""; }
  int32_t output_count() const noexcept override { return static_cast<int32_t>(op_->outputs().size()); }
  int32_t initialize() noexcept override { return report(op_->name(), load_kernels()); }
  void terminate() noexcept override {}
  void destroy() noexcept override { delete this; }
  Plugin* clone() const noexcept override { return new OpPlugin(op_->clone(), name_space_); }

  size_t serialized_bytes() const noexcept override { return sizeof(Header) + op_->values.size() * sizeof(double); }

  void serialize(void* buffer) const noexcept override {
    Header header{{}, kContractVersion, static_cast<int32_t>(op_->values.size())};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    std::memcpy(buffer, &header, sizeof header);
    std::memcpy(static_cast<char*>(buffer) + sizeof header, op_->values.data(), op_->values.size() * sizeof(double));
  }

  int32_t output_type(int32_t output, const int32_t*, int32_t) const noexcept override {
    const std::vector<OutputSpec> outputs = op_->outputs();
    const Type type = output >= 0 && output < output_count() ? outputs[output].type : Type::kFloat32;
    return static_cast<int32_t>(travelling_type(type));
  }

  DimsExpressions output_dims(int32_t output, const DimsExpressions* in, int32_t in_count,
                              ExpressionBuilder& builder) noexcept override {
    const DimsExpressions none{-1, {}};
    if (report(op_->name(), count_mismatch(*op_, in_count, output_count()))) return none;
    if (output < 0 || output >= output_count()) return none;
    const OutputSpec spec = op_->outputs()[output];
    DimsExpressions dims = in[spec.like];
    const bool is_longer = spec.adds_last && op_->inputs()[spec.like].type != Type::kInt64;  // else in the words' place
    if (dims.rank < 1 || dims.rank + is_longer > 8) return none;
    if (is_longer) ++dims.rank;
    const Expression*& last = dims.sizes[dims.rank - 1];
    if (spec.last > 0) last = builder.maker->constant(static_cast<int32_t>(spec.last));
    if (spec.last < 0 && spec.type == Type::kInt64) last = builder.maker->constant(2);
    if (spec.last < 0 && spec.type != Type::kInt64) --dims.rank;
    return dims;
  }

  bool supports(int32_t position, const TensorDesc* in_out, int32_t in_count, int32_t out_count) noexcept override {
    return count_mismatch(*op_, in_count, out_count).empty() &&
           is_supported(travelling_types(*op_), position, in_out[position]);
  }

  // 8.6 takes no answer here: what is refused is logged, and refused again by enqueue().
  void configure(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc*,
                 int32_t out_count) noexcept override {
    std::string reason = count_mismatch(*op_, in_count, out_count);
    if (reason.empty())
      reason = op_->check(to_shapes(*op_, in_count, [&](int i) { return in[i].desc.dims; }).data());
    if (reason.empty()) reason = op_->check(to_shapes(*op_, in_count, [&](int i) { return in[i].max; }).data());
    report(op_->name(), reason);
  }

  size_t workspace_bytes(const TensorDesc* in, int32_t in_count, const TensorDesc*, int32_t) const noexcept override {
    return op_->workspace_bytes(to_shapes(*op_, in_count, [&](int i) { return in[i].dims; }).data());
  }

  int32_t enqueue(const TensorDesc* in_desc, const TensorDesc*, const void* const* in, void* const* out,
                  void* workspace, void* stream) noexcept override {
    const int count = static_cast<int>(op_->inputs().size());
    const std::vector<Shape> shapes = to_shapes(*op_, count, [&](int i) { return in_desc[i].dims; });
    return report(op_->name(), op_->enqueue({shapes.data(), in, out, workspace, stream}));
  }

 private:
  std::unique_ptr<Op> op_;
  std::string name_space_;
};

class OpCreator final : public Creator {
 public:
  explicit OpCreator(const OpType& type) : type_(type), names_(type) {}

  const char* name() const noexcept override { return type_.name; }
  const char* version() const noexcept override { return contract_version(); }
  const char* name_space() const noexcept override { return name_space_.c_str(); }
  void set_name_space(const char* name) noexcept override { name_space_ = name ? name : ""; }
  const FieldCollection* field_names() noexcept override { return names_.get(); }

  Plugin* create(const char* layer, const FieldCollection* fields) noexcept override {
    std::string reason;
    std::unique_ptr<Op> op =
        create_op(type_.name, fields ? fields->fields : nullptr, fields ? fields->count : 0, reason);
    return finish(std::move(op), layer, reason);
  }

  Plugin* deserialize(const char* layer, const void* data, size_t bytes) noexcept override {
    std::string reason;
    std::vector<GivenAttribute> given;
    if (read(data, bytes, given, reason)) return finish(create_op(type_.name, given, reason), layer, reason);
    return finish(nullptr, layer, reason);
  }

 private:
  Plugin* finish(std::unique_ptr<Op> op, const char* layer, const std::string& reason) const {
    if (op) return new OpPlugin(std::move(op), name_space_);
    fail(std::string(type_.name) + " '" + (layer ? layer : "") + "': " + reason);
    return nullptr;
  }

  bool read(const void* data, size_t bytes, std::vector<GivenAttribute>& given, std::string& reason) const {
    Header header{};
    if (bytes >= sizeof header) std::memcpy(&header, data, sizeof header);
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
      reason = "its " + std::to_string(bytes) + " bytes in the engine are not this plugin's";
      return false;
    }
    given.push_back({kContractField, false, static_cast<double>(header.contract_version)});
    if (header.contract_version != kContractVersion) return true;  // create_op() refuses it
    const size_t count = type_.attributes.size();
    if (header.count != static_cast<int32_t>(count) || bytes != sizeof header + count * sizeof(double)) {
      reason = "its " + std::to_string(bytes) + " bytes in the engine are damaged";
      return false;
    }
    for (size_t i = 0; i < count; ++i) {
      double value;
      std::memcpy(&value, static_cast<const char*>(data) + sizeof header + i * sizeof value, sizeof value);
      given.push_back({type_.attributes[i].name, type_.attributes[i].is_float, value});
    }
    return true;
  }

  const OpType& type_;
  FieldNames<FieldCollection, Field> names_;
  std::string name_space_ = kNamespace;
};

}  // namespace
}  // namespace edge_awq::trt8

// What the registry of TensorRT 8.6 asks a plugin library for.
EDGE_AWQ_API edge_awq::trt8::Creator* const* getPluginCreators(int32_t& count) {
  using namespace edge_awq::trt8;
  static const auto creators = [] {
    std::vector<Creator*> all;  // for as long as the library is loaded
    for (const edge_awq::OpType& type : edge_awq::op_types()) all.push_back(new OpCreator(type));
    return all;
  }();
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}
