#include "op.h"

#include <cstdarg>
#include <cstdio>

#include "modules.h"

namespace edge_awq {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += (i ? ", " : "") + std::to_string(shape.dims[i]);
  return text + "]";
}

std::string mismatch(const char* tensor, const Shape& shape, const char* format, ...) {
  char wanted[128];
  va_list values;
  va_start(values, format);
  std::vsnprintf(wanted, sizeof wanted, format, values);
  va_end(values);
  return std::string(tensor) + " has shape " + to_string(shape) + ", not " + wanted;
}

ZeroedMemory::~ZeroedMemory() {
  for (const DevicePointer each : all_) driver().release(each);
}

std::string ZeroedMemory::reserve(size_t bytes) {
  if (bytes <= bytes_) return "";
  const Driver& d = driver();
  if (!d.missing.empty()) return d.missing;
  DevicePointer grown = 0;
  if (const int status = d.allocate(&grown, bytes))
    return driver_error("cuMemAlloc", status) + " (" + std::to_string(bytes) + " bytes)";
  int status = d.fill(grown, 0, bytes);
  if (!status) status = d.wait_for_stream(nullptr);  // fill() runs beside streams that do not wait for the default one
  if (status) {
    d.release(grown);
    return driver_error("cuMemsetD8", status);
  }
  all_.push_back(grown);
  bytes_ = bytes;
  return "";
}

std::string Op::prepare(const Shape* shapes) {
  if (std::string reason = check(shapes); !reason.empty()) return reason;
  if (std::string reason = load_kernels(); !reason.empty()) return reason;
  return zeroed_.reserve(zeroed_bytes(shapes));
}

std::string Op::enqueue(const Call& call) {
  if (std::string reason = check(call.shapes); !reason.empty()) return reason;
  if (std::string reason = zeroed_.reserve(zeroed_bytes(call.shapes)); !reason.empty()) return reason;
  if (!call.workspace && workspace_bytes(call.shapes) > 0) return "workspace is null";
  return launch(call);
}

const OpType* find_op_type(const std::string& name) {
  for (const OpType& type : op_types())
    if (name == type.name) return &type;
  return nullptr;
}

namespace {

std::string set_value(const OpType& type, const GivenAttribute& given, Op& op, std::vector<bool>& is_set) {
  for (size_t i = 0; i < type.attributes.size(); ++i) {
    const Attribute& attribute = type.attributes[i];
    if (given.name != attribute.name) continue;
    if (given.is_float && !attribute.is_float) return given.name + " must be a whole number";
    op.values[i] = given.value;
    is_set[i] = true;
    return "";
  }
  return "unknown attribute " + given.name;
}

}  // namespace

std::unique_ptr<Op> make_op(const OpType& type, const std::vector<GivenAttribute>& given, std::string& reason) {
  std::unique_ptr<Op> op = type.make();
  std::vector<bool> is_set(type.attributes.size());
  op->values.clear();
  for (const Attribute& attribute : type.attributes) op->values.push_back(attribute.fallback);
  for (const GivenAttribute& each : given)
    if (reason = set_value(type, each, *op, is_set); !reason.empty()) return nullptr;
  for (size_t i = 0; i < is_set.size(); ++i) {
    if (is_set[i] || !type.attributes[i].is_required) continue;
    reason = std::string("attribute ") + type.attributes[i].name + " is missing";
    return nullptr;
  }
  reason = op->check();
  return reason.empty() ? std::move(op) : nullptr;
}

Shape output_shape(const OutputSpec& output, const Shape* inputs) {
  Shape shape = inputs[output.like];
  if (output.adds_last) ++shape.rank;
  if (shape.rank > 0 && output.last > 0) shape.dims[shape.rank - 1] = output.last;
  if (shape.rank > 0 && output.last < 0) --shape.rank;
  return shape;
}

}  // namespace edge_awq
