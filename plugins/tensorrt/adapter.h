// What both plugin adapters, for TensorRT 10.3 to 11 and for 8.6, share.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../include/contract.h"
#include "../library/fields.h"
#include "../library/log.h"
#include "../library/op.h"

namespace edge_awq {

constexpr const char* kNamespace = "edge.awq";

// An op's tensors of a kind, inputs first, as TensorRT counts them.
inline std::vector<Type> tensor_types(const Op& op) {
  std::vector<Type> types;
  for (const InputSpec& input : op.inputs()) types.push_back(input.type);
  for (const OutputSpec& output : op.outputs()) types.push_back(output.type);
  return types;
}

// Why so many tensors are not what the op has, or an empty text.
inline std::string count_mismatch(const Op& op, int inputs, int outputs) {
  const int in = static_cast<int>(op.inputs().size()), out = static_cast<int>(op.outputs().size());
  if (inputs == in && outputs == out) return "";
  return std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, not " + std::to_string(in) +
         " and " + std::to_string(out);
}

// Whether `Desc` may stand at a position of an op with these tensors. A field's meaning is the same in all versions.
template <class Desc>
bool is_supported(const std::vector<Type>& types, int position, const Desc& desc) {
  return position >= 0 && position < static_cast<int>(types.size()) && desc.format == 0 &&
         desc.type == static_cast<int>(types[position]);
}

template <class Dims>
Shape to_shape(const Dims& dims) {
  Shape shape;
  shape.rank = std::clamp(dims.rank, 0, 8);
  for (int i = 0; i < shape.rank; ++i) shape.dims[i] = dims.sizes[i];
  return shape;
}

// The names and types of an op's attributes, as a creator lists them. `Collection` and `Field` are TensorRT's.
template <class Collection, class Field>
class FieldNames {
 public:
  explicit FieldNames(const OpType& type) {
    for (const Attribute& attribute : type.attributes) add(attribute.name, attribute.is_float);
    add(kContractField, false);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }
  const Collection* get() const { return &collection_; }

 private:
  void add(const char* name, bool is_float) {
    fields_.push_back({name, nullptr, static_cast<int32_t>(is_float ? FieldType::kFloat32 : FieldType::kInt32), 1});
  }

  std::vector<Field> fields_;
  Collection collection_;
};

// The contract's version as text: what TensorRT calls a plugin's version.
inline const char* contract_version() {
  static const std::string text = std::to_string(kContractVersion);
  return text.c_str();
}

}  // namespace edge_awq
