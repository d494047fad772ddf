// An op as an inference engine meets it: attributes, tensors, shapes, memory, and the work itself with raw pointers.
// Nothing here knows TensorRT; its plugin interfaces, old and new, are adapters over this (../tensorrt).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../common/launch.h"
#include "driver.h"

namespace edge_awq {

// Numbered as in TensorRT. Packed 4-bit and 8-bit weights travel as kInt8: plugins cannot take unsigned bytes.
enum class Type : int { kFloat32 = 0, kFloat16 = 1, kInt8 = 2, kInt32 = 3, kInt64 = 8 };

struct Shape {
  int rank = 0;
  int64_t dims[8] = {};

  int64_t elements() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
  int64_t last() const { return rank > 0 ? dims[rank - 1] : 0; }
  int64_t rows() const { return last() > 0 ? elements() / last() : 0; }  // of its last dimension
};

// "[1, 8, 4096]".
std::string to_string(const Shape& shape);

struct InputSpec {
  const char* name;
  Type type;
};

struct OutputSpec {
  const char* name;
  Type type;
  int like;           // the input whose shape it has,
  int64_t last = 0;   // but for the last dimension, if this is not 0; none at all if it is -1
  int alias = -1;     // the input that is overwritten: the same memory
  bool adds_last = false;  // `last` is one dimension more, behind those of the input
};

// A number that the graph's node carries. Whole numbers have 32 bits.
struct Attribute {
  const char* name;
  bool is_float = false;
  bool is_required = true;
  double fallback = 0;
};

// A call's tensors: shapes of the inputs, device pointers, memory as large as workspace_bytes() says.
struct Call {
  const Shape* shapes;
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  void* stream;
};

// Device memory that is all zeros before the first launch, and that kernels leave so: counters of finished blocks.
class ZeroedMemory {
 public:
  ZeroedMemory() = default;
  ZeroedMemory(const ZeroedMemory&) : ZeroedMemory() {}  // a clone gets its own
  ZeroedMemory& operator=(const ZeroedMemory&) = delete;
  ~ZeroedMemory();

  // Makes it at least so large; why it could not, or an empty text. Not while a stream is captured. What there was
  // before stays to the end: graphs that were captured count in it.
  std::string reserve(size_t bytes);
  unsigned* get() const { return all_.empty() ? nullptr : reinterpret_cast<unsigned*>(all_.back()); }

 private:
  std::vector<DevicePointer> all_;  // the last is the largest
  size_t bytes_ = 0;
};

class Op {
 public:
  virtual ~Op() = default;
  virtual const char* name() const = 0;
  virtual std::unique_ptr<Op> clone() const = 0;

  // Attributes, in the order of OpType::attributes.
  std::vector<double> values;

  virtual std::vector<InputSpec> inputs() const = 0;
  virtual std::vector<OutputSpec> outputs() const = 0;

  // Why these attributes, or these shapes with them, are refused; or an empty text. Sizes of 0 or less in a shape are
  // not known yet.
  virtual std::string check() const = 0;
  virtual std::string check(const Shape* shapes) const = 0;

  // For these shapes and all smaller ones; workspace on all_multiprocessors() as well.
  virtual size_t workspace_bytes(const Shape*) const { return 0; }
  virtual size_t zeroed_bytes(const Shape*) const { return 0; }

  // Everything that a captured stream must not do: loading kernels, allocating.
  std::string prepare(const Shape* shapes);

  // Returns why nothing was launched, or an empty text.
  std::string enqueue(const Call& call);

 protected:
  virtual std::string launch(const Call& call) const = 0;

  ZeroedMemory zeroed_;
};

// What can be created by name.
struct OpType {
  const char* name;
  std::vector<Attribute> attributes;
  std::unique_ptr<Op> (*make)();
};

const std::vector<OpType>& op_types();
const OpType* find_op_type(const std::string& name);

// An attribute as it comes in.
struct GivenAttribute {
  std::string name;
  bool is_float;
  double value;
};

// Null, with the reason, where attributes are missing, unknown, of the wrong kind or refused.
std::unique_ptr<Op> make_op(const OpType& type, const std::vector<GivenAttribute>& given, std::string& reason);

// The shape of an output, from those of the inputs.
Shape output_shape(const OutputSpec& output, const Shape* inputs);

// "x has shape [4, 8], which does not end in K = 4096" and the like, for check(shapes).
std::string mismatch(const char* tensor, const Shape& shape, const char* format, ...);

// Whether a size is `expected`, or not known yet.
inline bool is_size(int64_t size, int64_t expected) { return size <= 0 || size == expected; }

}  // namespace edge_awq
