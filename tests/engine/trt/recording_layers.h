// Tensors and layers of TensorRT 8.6 that only take notes; see recording_network.cpp.
#pragma once

#include <NvInfer.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace recording {

using namespace nvinfer1;

[[noreturn]] inline void fail(const std::string& reason) {
  std::printf("error %s\n", reason.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

struct Log final : ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%d %s\n", static_cast<int>(severity), text);
  }
};

inline Log logger;

struct TensorNotes final : apiv::VTensor {
  std::string name;
  Dims dims{};
  DataType type = DataType::kFLOAT;
  bool is_input = false, is_output = false;
  TensorFormats formats = 1;

  void setName(const char* value) noexcept override { name = value; }
  const char* getName() const noexcept override { return name.c_str(); }
  void setDimensions(Dims value) noexcept override { dims = value; }
  Dims getDimensions() const noexcept override { return dims; }
  void setType(DataType value) noexcept override { type = value; }
  DataType getType() const noexcept override { return type; }
  bool setDynamicRange(float, float) noexcept override { return true; }
  bool isNetworkInput() const noexcept override { return is_input; }
  bool isNetworkOutput() const noexcept override { return is_output; }
  void setBroadcastAcrossBatch(bool) noexcept override {}
  bool getBroadcastAcrossBatch() const noexcept override { return false; }
  TensorLocation getLocation() const noexcept override { return TensorLocation::kDEVICE; }
  void setLocation(TensorLocation) noexcept override {}
  bool dynamicRangeIsSet() const noexcept override { return false; }
  void resetDynamicRange() noexcept override {}
  float getDynamicRangeMin() const noexcept override { return 0; }
  float getDynamicRangeMax() const noexcept override { return 0; }
  void setAllowedFormats(TensorFormats value) noexcept override { formats = value; }
  TensorFormats getAllowedFormats() const noexcept override { return formats; }
  bool isShapeTensor() const noexcept override { return false; }
  bool isExecutionTensor() const noexcept override { return true; }
  void setDimensionName(int32_t, const char*) noexcept override {}
  const char* getDimensionName(int32_t) const noexcept override { return nullptr; }
};

struct Tensor final : ITensor {
  TensorNotes notes;
  Tensor() { mImpl = &notes; }
};

inline Tensor* new_tensor(DataType type, Dims dims) {
  auto* made = new Tensor;
  made->notes.type = type;
  made->notes.dims = dims;
  return made;
}

// What any layer is; `infer` gives its output's shape after an input was set.
struct LayerNotes : apiv::VLayer {
  LayerType type = LayerType::kIDENTITY;
  std::string name, metadata;
  std::vector<ITensor*> inputs;
  std::vector<Tensor*> outputs;

  virtual void infer() {}
  LayerType getType() const noexcept override { return type; }
  void setName(const char* value) noexcept override { name = value; }
  const char* getName() const noexcept override { return name.c_str(); }
  int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
  ITensor* getInput(int32_t i) const noexcept override { return inputs[i]; }
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(outputs.size()); }
  ITensor* getOutput(int32_t i) const noexcept override { return outputs[i]; }
  void setInput(int32_t i, ITensor& tensor) noexcept override {
    if (static_cast<size_t>(i) >= inputs.size()) inputs.resize(i + 1);
    inputs[i] = &tensor;
    infer();
  }
  void setPrecision(DataType) noexcept override {}
  DataType getPrecision() const noexcept override { return DataType::kFLOAT; }
  bool precisionIsSet() const noexcept override { return false; }
  void resetPrecision() noexcept override {}
  void setOutputType(int32_t i, DataType value) noexcept override { outputs[i]->notes.type = value; }
  DataType getOutputType(int32_t i) const noexcept override { return outputs[i]->notes.type; }
  bool outputTypeIsSet(int32_t) const noexcept override { return false; }
  void resetOutputType(int32_t) noexcept override {}
  void setMetadata(const char* text) noexcept override { metadata = text; }
  const char* getMetadata() const noexcept override { return metadata.c_str(); }
};

// A layer as the interface has it, with notes for what all layers have and for what its kind has.
template <class Interface, class Kind, LayerType Type>
struct Layer final : Interface {
  struct Common final : LayerNotes {
    Layer* owner = nullptr;
    void infer() override { owner->kind.infer(*this); }
  } common;
  Kind kind;

  explicit Layer(std::vector<ITensor*> inputs, int outputs = 1) {
    this->mLayer = &common;
    this->mImpl = &kind;
    kind.common = &common;
    common.owner = this;
    common.type = Type;
    common.inputs = std::move(inputs);
    for (int i = 0; i < outputs; ++i)
      common.outputs.push_back(new_tensor(common.inputs.empty() ? DataType::kFLOAT : common.inputs[0]->getType(), {}));
    common.infer();
  }
};

template <class V>
struct Kind : V {
  LayerNotes* common = nullptr;
  Dims in(int i) const { return common->inputs[i]->getDimensions(); }
  TensorNotes& out() const { return common->outputs[0]->notes; }
  bool has(size_t i) const { return common->inputs.size() > i && common->inputs[i]; }
  void again() { common->infer(); }
};

template <class V>
struct Same : Kind<V> {
  void infer(LayerNotes&) { this->out().dims = this->in(0); }
};

struct Activation final : Same<apiv::VActivationLayer> {
  ActivationType type{};
  float alpha = 0, beta = 0;
  void setActivationType(ActivationType value) noexcept override { type = value; }
  ActivationType getActivationType() const noexcept override { return type; }
  void setAlpha(float value) noexcept override { alpha = value; }
  void setBeta(float value) noexcept override { beta = value; }
  float getAlpha() const noexcept override { return alpha; }
  float getBeta() const noexcept override { return beta; }
};

struct Unary final : Same<apiv::VUnaryLayer> {
  UnaryOperation operation{};
  void setOperation(UnaryOperation value) noexcept override { operation = value; }
  UnaryOperation getOperation() const noexcept override { return operation; }
};

struct Identity final : Same<apiv::VIdentityLayer> {};

struct Cast final : Same<apiv::VCastLayer> {
  void setToType(DataType value) noexcept override { out().type = value; }
  DataType getToType() const noexcept override { return out().type; }
};

struct ElementWise final : Kind<apiv::VElementWiseLayer> {
  ElementWiseOperation operation{};
  void setOperation(ElementWiseOperation value) noexcept override { operation = value; }
  ElementWiseOperation getOperation() const noexcept override { return operation; }
  void infer(LayerNotes&) {
    Dims a = in(0), b = in(1);
    if (a.nbDims != b.nbDims) fail("an elementwise layer of two ranks: " + common->name);
    if (common->inputs[0]->getType() != common->inputs[1]->getType())
      fail("an elementwise layer of two types: " + common->name);
    for (int i = 0; i < a.nbDims; ++i) {
      if (a.d[i] != b.d[i] && a.d[i] > 1 && b.d[i] > 1) fail("an elementwise layer of different shapes");
      a.d[i] = a.d[i] == 1 ? b.d[i] : b.d[i] > 1 ? b.d[i] : a.d[i];
    }
    out().dims = a;
    const auto first = ElementWiseOperation::kEQUAL, last = ElementWiseOperation::kLESS;
    if (operation >= first && operation <= last) out().type = DataType::kBOOL;
  }
};

struct Gather final : Kind<apiv::VGatherLayer> {
  int32_t axis = 0, batch = 0;
  GatherMode mode = GatherMode::kDEFAULT;
  void setGatherAxis(int32_t value) noexcept override { axis = value; again(); }
  int32_t getGatherAxis() const noexcept override { return axis; }
  void setNbElementWiseDims(int32_t value) noexcept override { batch = value; again(); }
  int32_t getNbElementWiseDims() const noexcept override { return batch; }
  void setMode(GatherMode value) noexcept override { mode = value; again(); }
  GatherMode getMode() const noexcept override { return mode; }
  void infer(LayerNotes&) {
    if (mode != GatherMode::kDEFAULT || batch) fail("a gather that is not known here");
    const Dims data = in(0), indices = in(1);
    Dims dims{data.nbDims + indices.nbDims - 1, {}};
    int at = 0;
    for (int i = 0; i < axis; ++i) dims.d[at++] = data.d[i];
    for (int i = 0; i < indices.nbDims; ++i) dims.d[at++] = indices.d[i];
    for (int i = axis + 1; i < data.nbDims; ++i) dims.d[at++] = data.d[i];
    out().dims = dims;
  }
};

struct Concatenation final : Kind<apiv::VConcatenationLayer> {
  int32_t axis = 0;
  void setAxis(int32_t value) noexcept override { axis = value; again(); }
  int32_t getAxis() const noexcept override { return axis; }
  void infer(LayerNotes&) {
    Dims dims = in(0);
    for (size_t i = 1; i < common->inputs.size(); ++i) {
      const int more = in(static_cast<int>(i)).d[axis];
      dims.d[axis] = dims.d[axis] < 0 || more < 0 ? -1 : dims.d[axis] + more;
    }
    out().dims = dims;
  }
};

struct Shape final : Kind<apiv::VShapeLayer> {
  void infer(LayerNotes&) {
    out().dims = {1, {in(0).nbDims}};
    out().type = DataType::kINT32;
  }
};

struct Shuffle final : Kind<apiv::VShuffleLayer> {
  Permutation first{}, second{};
  Dims reshape{-1, {}};
  bool zero_is_placeholder = true, is_set = false;
  void setFirstTranspose(const Permutation& value) noexcept override { first = value; }
  const Permutation& getFirstTranspose() const noexcept override { return first; }
  void setReshapeDimensions(Dims value) noexcept override { reshape = value; is_set = true; again(); }
  Dims getReshapeDimensions() const noexcept override { return reshape; }
  void setSecondTranspose(const Permutation& value) noexcept override { second = value; }
  const Permutation& getSecondTranspose() const noexcept override { return second; }
  void setZeroIsPlaceholder(bool value) noexcept override { zero_is_placeholder = value; again(); }
  bool getZeroIsPlaceholder() const noexcept override { return zero_is_placeholder; }
  void infer(LayerNotes&) {
    Dims dims = in(0);
    if (has(1)) {
      dims = {in(1).d[0], {}};
      for (int i = 0; i < dims.nbDims; ++i) dims.d[i] = -1;
    } else if (is_set) {
      int64_t all = 1, known = 1;
      for (int i = 0; i < dims.nbDims; ++i) all = dims.d[i] < 0 || all < 0 ? -1 : all * dims.d[i];
      Dims made = reshape;
      int open = -1;
      for (int i = 0; i < made.nbDims; ++i) {
        if (made.d[i] == 0 && zero_is_placeholder) made.d[i] = dims.d[i];
        if (reshape.d[i] == -1) open = i;
        else known = made.d[i] < 0 || known < 0 ? -1 : known * made.d[i];
      }
      if (open >= 0 && all >= 0 && known > 0) made.d[open] = static_cast<int32_t>(all / known);
      dims = made;
    }
    out().dims = dims;
  }
};

struct Slice final : Kind<apiv::VSliceLayer> {
  Dims start{}, size{}, stride{};
  SliceMode mode{};
  void setStart(Dims value) noexcept override { start = value; }
  Dims getStart() const noexcept override { return start; }
  void setSize(Dims value) noexcept override { size = value; again(); }
  Dims getSize() const noexcept override { return size; }
  void setStride(Dims value) noexcept override { stride = value; }
  Dims getStride() const noexcept override { return stride; }
  void setMode(SliceMode value) noexcept override { mode = value; }
  SliceMode getMode() const noexcept override { return mode; }
  void infer(LayerNotes&) {
    Dims dims = size;
    if (has(2)) {
      dims = in(0);
      for (int i = 0; i < dims.nbDims; ++i) dims.d[i] = -1;
    }
    out().dims = dims;
  }
};

struct Constant final : Kind<apiv::VConstantLayer> {
  Weights weights{};
  void setWeights(Weights value) noexcept override { weights = value; out().type = value.type; }
  Weights getWeights() const noexcept override { return weights; }
  void setDimensions(Dims value) noexcept override { out().dims = value; }
  Dims getDimensions() const noexcept override { return out().dims; }
  void infer(LayerNotes&) {}
};

struct Select final : Kind<apiv::VSelectLayer> {
  void infer(LayerNotes&) {
    out().dims = in(1);
    out().type = common->inputs[1]->getType();
  }
};

struct PluginKind final : Kind<apiv::VPluginV2Layer> {
  IPluginV2* plugin = nullptr;
  IPluginV2& getPlugin() noexcept override { return *plugin; }
  void infer(LayerNotes&) {}
};

}  // namespace recording
