// Attributes as TensorRT hands them over (PluginField), and as this library's C functions take them.
#pragma once

#include "op.h"

namespace edge_awq {

// Numbered as TensorRT's PluginFieldType.
enum class FieldType : int { kFloat32 = 1, kFloat64 = 2, kInt32 = 5, kInt64 = 10 };

constexpr const char* kContractField = "contract_version";  // travels in engines

// TensorRT's PluginField has the same members.
template <class Field>
std::string read_field(const Field& field, GivenAttribute& attribute) {
  const std::string name = field.name ? field.name : "(no name)";
  if (!field.data || field.length != 1) return "attribute " + name + " is not one number";
  switch (static_cast<FieldType>(field.type)) {
    case FieldType::kInt32: attribute = {name, false, double(*static_cast<const int32_t*>(field.data))}; return "";
    case FieldType::kInt64: attribute = {name, false, double(*static_cast<const int64_t*>(field.data))}; return "";
    case FieldType::kFloat32: attribute = {name, true, *static_cast<const float*>(field.data)}; return "";
    case FieldType::kFloat64: attribute = {name, true, *static_cast<const double*>(field.data)}; return "";
  }
  return "attribute " + name + " has field type " + std::to_string(static_cast<int>(field.type)) +
         ", not INT32 or FLOAT32";
}

// Null, with the reason, if the op is unknown or refuses its attributes.
std::unique_ptr<Op> create_op(const std::string& name, const std::vector<GivenAttribute>& given, std::string& reason);

template <class Field>
std::unique_ptr<Op> create_op(const std::string& name, const Field* fields, int count, std::string& reason) {
  std::vector<GivenAttribute> given(count > 0 ? count : 0);
  for (int i = 0; i < count; ++i)
    if (reason = read_field(fields[i], given[i]); !reason.empty()) return nullptr;
  return create_op(name, given, reason);
}

}  // namespace edge_awq
