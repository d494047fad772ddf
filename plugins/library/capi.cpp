#include "capi.h"

#include <cstring>

#include "../include/contract.h"
#include "fields.h"
#include "images.h"
#include "launch.h"
#include "log.h"
#include "modules.h"
#include "plans.h"

namespace {

using namespace edge_awq;

// Shapes of the tensors, after a check of their number.
std::string read_shapes(const Op& op, const CTensor* tensors, int count, std::vector<Shape>& shapes) {
  const int wanted = static_cast<int>(op.inputs().size());
  if (count != wanted) return std::to_string(count) + " inputs, not " + std::to_string(wanted);
  for (int i = 0; i < count; ++i) {
    if (tensors[i].rank < 0 || tensors[i].rank > 8) return "a tensor of rank " + std::to_string(tensors[i].rank);
    Shape shape;
    shape.rank = tensors[i].rank;
    std::memcpy(shape.dims, tensors[i].dims, sizeof shape.dims);
    shapes.push_back(shape);
  }
  return op.check(shapes.data());
}

std::string enqueue(Op& op, const std::vector<Shape>& shapes, const CTensor* inputs, const CTensor* outputs, int count,
                    void* workspace, void* stream) {
  const std::vector<OutputSpec> specs = op.outputs();
  if (count != static_cast<int>(specs.size()))
    return std::to_string(count) + " outputs, not " + std::to_string(specs.size());
  std::vector<const void*> read;
  std::vector<void*> written;
  for (size_t i = 0; i < shapes.size(); ++i) read.push_back(inputs[i].data);
  for (int i = 0; i < count; ++i) {
    Shape given, wanted = output_shape(specs[i], shapes.data());
    given.rank = outputs[i].rank;
    std::memcpy(given.dims, outputs[i].dims, sizeof given.dims);
    if (to_string(given) != to_string(wanted)) return mismatch(specs[i].name, given, "%s", to_string(wanted).c_str());
    written.push_back(outputs[i].data);
  }
  return op.enqueue({shapes.data(), read.data(), written.data(), workspace, stream});
}

std::string architectures(const char* source) {
  std::string text;
  for (size_t i = 0; i < kImageCount; ++i)
    if (std::strcmp(kImages[i].source, source) == 0)
      text += (kImages[i].is_ptx ? " compute_" : " sm_") + std::to_string(kImages[i].architecture);
  return text;
}

}  // namespace

int edge_awq_contract_version() { return kContractVersion; }

const char* edge_awq_last_error() { return last_error(); }

const char* edge_awq_kernels() {
  static const std::string text = [] {
    std::string lines;
    for (size_t i = 0; i < kKernelCount; ++i) lines += kKernels[i].kernel + architectures(kKernels[i].source) + "\n";
    return lines;
  }();
  return text.c_str();
}

const char* edge_awq_ops() {
  static const std::string text = [] {
    std::string lines;
    for (const OpType& type : op_types()) {
      lines += type.name;
      for (const Attribute& attribute : type.attributes) lines += std::string(" ") + attribute.name;
      lines += "\n";
    }
    return lines;
  }();
  return text.c_str();
}

int edge_awq_load() { return report("kernels", load_kernels()); }

void edge_awq_set_dependent_launch(int allowed) { set_dependent_launch(allowed != 0); }

int edge_awq_launch(const char* name, const void* arguments, size_t bytes, void* stream) {
  for (const Plan& plan : kPlans) {
    if (std::strcmp(plan.name, name) != 0) continue;
    if (plan.argument_bytes != bytes)
      return fail(std::string(name) + ": " + std::to_string(bytes) + " bytes of arguments, not " +
                  std::to_string(plan.argument_bytes));
    return report(name, launch_planned(plan.make(arguments), arguments, stream));
  }
  return fail(std::string("no plan is called ") + name);
}

void* edge_awq_create(const char* name, const CField* fields, int count) {
  std::string reason;
  std::unique_ptr<Op> op = create_op(name, fields, count, reason);
  report(name, reason);
  return op.release();
}

void edge_awq_destroy(void* op) { delete static_cast<Op*>(op); }

int64_t edge_awq_workspace_bytes(void* handle, const CTensor* inputs, int count) {
  const Op& op = *static_cast<Op*>(handle);
  std::vector<Shape> shapes;
  if (report(op.name(), read_shapes(op, inputs, count, shapes))) return -1;
  return static_cast<int64_t>(op.workspace_bytes(shapes.data()));
}

int edge_awq_prepare(void* handle, const CTensor* inputs, int count) {
  Op& op = *static_cast<Op*>(handle);
  std::vector<Shape> shapes;
  std::string reason = read_shapes(op, inputs, count, shapes);
  if (reason.empty()) reason = op.prepare(shapes.data());
  return report(op.name(), reason);
}

int edge_awq_enqueue(void* handle, const CTensor* inputs, int input_count, const CTensor* outputs, int output_count,
                     void* workspace, void* stream) {
  Op& op = *static_cast<Op*>(handle);
  std::vector<Shape> shapes;
  std::string reason = read_shapes(op, inputs, input_count, shapes);
  if (reason.empty()) reason = enqueue(op, shapes, inputs, outputs, output_count, workspace, stream);
  return report(op.name(), reason);
}
