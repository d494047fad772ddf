// A network definition of TensorRT 8.6 that only takes notes, for its real parser: that one needs no builder, and so no
// GPU. Layers have the shapes that they will have, -1 where they vary, as the parser asks for them on its way; plugins
// are the real ones from TensorRT's own registry, asked for types and shapes as the builder asks them.
//
//     recording_network TENSORRT_FOLDER PLUGIN_LIBRARY MODEL PATH_BESIDE_THE_WEIGHTS
//
// prints a line for each input, layer and output, or the parser's errors, and fails then. Compiled against the headers
// of 8.6, which are not ours.
#include <NvOnnxParser.h>
#include <dlfcn.h>

#include <fstream>
#include <iterator>

#include "recording_layers.h"

using namespace recording;

namespace {

// Sizes of a plugin's outputs, as the builder asks for them.
struct Size final : apiv::VDimensionExpr {
  int32_t value;
  explicit Size(int32_t v) : value(v) {}
  bool isConstant() const override { return value >= 0; }
  int32_t getConstantValue() const override { return value; }
};
struct Expression final : IDimensionExpr {
  Size size;
  explicit Expression(int32_t value) : size(value) { mImpl = &size; }
};
struct Sizes final : apiv::VExprBuilder {
  const IDimensionExpr* constant(int32_t value) override { return new Expression(value); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
    return new Expression(-1);
  }
};
struct Builder final : IExprBuilder {
  Sizes sizes;
  Builder() { mImpl = &sizes; }
};

using PluginLayer = Layer<IPluginV2Layer, PluginKind, LayerType::kPLUGIN_V2>;

PluginLayer* make_plugin_layer(ITensor* const* inputs, int count, IPluginV2& given) {
  auto* plugin = static_cast<IPluginV2DynamicExt*>(given.clone());
  auto* layer = new PluginLayer({inputs, inputs + count}, plugin->getNbOutputs());
  layer->kind.plugin = plugin;
  Builder builder;
  std::vector<DimsExprs> shapes(count);
  std::vector<DataType> types(count);
  std::vector<PluginTensorDesc> descriptions;
  for (int i = 0; i < count; ++i) {
    const Dims dims = inputs[i]->getDimensions();
    shapes[i].nbDims = dims.nbDims;
    for (int k = 0; k < dims.nbDims; ++k) shapes[i].d[k] = new Expression(dims.d[k]);
    types[i] = inputs[i]->getType();
    descriptions.push_back({dims, types[i], TensorFormat::kLINEAR, 1.0F});
  }
  const std::string what = std::string("plugin ") + plugin->getPluginType();
  for (int i = 0; i < plugin->getNbOutputs(); ++i) {
    const DimsExprs dims = plugin->getOutputDimensions(i, shapes.data(), count, builder);
    if (dims.nbDims < 0) fail(what + " has no shape for output " + std::to_string(i));
    TensorNotes& notes = layer->common.outputs[i]->notes;
    notes.dims.nbDims = dims.nbDims;
    for (int k = 0; k < dims.nbDims; ++k) notes.dims.d[k] = dims.d[k]->getConstantValue();
    notes.type = plugin->getOutputDataType(i, types.data(), count);
    descriptions.push_back({notes.dims, notes.type, TensorFormat::kLINEAR, 1.0F});
  }
  for (int i = 0; i < static_cast<int>(descriptions.size()); ++i)
    if (!plugin->supportsFormatCombination(i, descriptions.data(), count, plugin->getNbOutputs()))
      fail(what + " does not take tensor " + std::to_string(i) + " of type " +
           std::to_string(static_cast<int>(descriptions[i].type)));
  return layer;
}

// Of a builder the parser wants the registry alone.
struct BuilderNotes final : apiv::VBuilder {
  IPluginRegistry* registry = nullptr;
  IPluginRegistry& getPluginRegistry() noexcept override { return *registry; }
  ILogger* getLogger() const noexcept override { return &logger; }
  bool platformHasFastFp16() const noexcept override { return true; }
  bool platformHasFastInt8() const noexcept override { return true; }
  bool platformHasTf32() const noexcept override { return true; }
  void setMaxBatchSize(int32_t) noexcept override {}
  int32_t getMaxBatchSize() const noexcept override { return 1; }
  int32_t getMaxDLABatchSize() const noexcept override { return 0; }
  int32_t getNbDLACores() const noexcept override { return 0; }
  void setGpuAllocator(IGpuAllocator*) noexcept override {}
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  void reset() noexcept override {}
  bool setMaxThreads(int32_t) noexcept override { return true; }
  int32_t getMaxThreads() const noexcept override { return 1; }
  bool isNetworkSupported(const INetworkDefinition&, const IBuilderConfig&) const noexcept override { return true; }
  IBuilderConfig* createBuilderConfig() noexcept override { return nullptr; }
  ICudaEngine* buildEngineWithConfig(INetworkDefinition&, IBuilderConfig&) noexcept override { return nullptr; }
  INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags) noexcept override { return nullptr; }
  IOptimizationProfile* createOptimizationProfile() noexcept override { return nullptr; }
  IHostMemory* buildSerializedNetwork(INetworkDefinition&, IBuilderConfig&) noexcept override { return nullptr; }
};

struct BuilderOfNotes final : IBuilder {
  BuilderNotes notes;
  BuilderOfNotes() { mImpl = &notes; }
};

#define NOT_HERE(what) fail("the parser adds a layer that is not known here: " what)

struct Network final : apiv::VNetworkDefinition {
  std::vector<Tensor*> inputs;
  std::vector<ITensor*> outputs;
  std::vector<ILayer*> layers;
  std::string name;
  mutable BuilderOfNotes builder;

  template <class Made>
  Made* keep(Made* made) {
    layers.push_back(made);
    return made;
  }

  ITensor* addInput(const char* given, DataType type, Dims dims) noexcept override {
    inputs.push_back(new_tensor(type, dims));
    inputs.back()->notes.name = given;
    inputs.back()->notes.is_input = true;
    return inputs.back();
  }
  void markOutput(ITensor& tensor) noexcept override { outputs.push_back(&tensor); }
  IActivationLayer* addActivation(ITensor& x, ActivationType type) noexcept override {
    auto* made = keep(new Layer<IActivationLayer, Activation, LayerType::kACTIVATION>({&x}));
    made->kind.type = type;
    return made;
  }
  IElementWiseLayer* addElementWise(ITensor& a, ITensor& b, ElementWiseOperation operation) noexcept override {
    auto* made = keep(new Layer<IElementWiseLayer, ElementWise, LayerType::kELEMENTWISE>({&a, &b}));
    made->kind.operation = operation;
    made->kind.again();
    return made;
  }
  IUnaryLayer* addUnary(ITensor& x, UnaryOperation operation) noexcept override {
    auto* made = keep(new Layer<IUnaryLayer, Unary, LayerType::kUNARY>({&x}));
    made->kind.operation = operation;
    return made;
  }
  IShuffleLayer* addShuffle(ITensor& x) noexcept override {
    return keep(new Layer<IShuffleLayer, Shuffle, LayerType::kSHUFFLE>({&x}));
  }
  IGatherLayer* addGather(ITensor& data, ITensor& indices, int32_t axis) noexcept override {
    auto* made = keep(new Layer<IGatherLayer, Gather, LayerType::kGATHER>({&data, &indices}));
    made->kind.setGatherAxis(axis);
    return made;
  }
  IGatherLayer* addGatherV2(ITensor& data, ITensor& indices, GatherMode mode) noexcept override {
    auto* made = keep(new Layer<IGatherLayer, Gather, LayerType::kGATHER>({&data, &indices}));
    made->kind.setMode(mode);
    return made;
  }
  IConcatenationLayer* addConcatenation(ITensor* const* given, int32_t count) noexcept override {
    return keep(new Layer<IConcatenationLayer, Concatenation, LayerType::kCONCATENATION>({given, given + count}));
  }
  IConstantLayer* addConstant(Dims dims, Weights weights) noexcept override {
    auto* made = keep(new Layer<IConstantLayer, Constant, LayerType::kCONSTANT>({}));
    made->kind.setWeights(weights);
    made->kind.setDimensions(dims);
    return made;
  }
  IIdentityLayer* addIdentity(ITensor& x) noexcept override {
    return keep(new Layer<IIdentityLayer, Identity, LayerType::kIDENTITY>({&x}));
  }
  ICastLayer* addCast(ITensor& x, DataType type) noexcept override {
    auto* made = keep(new Layer<ICastLayer, Cast, LayerType::kCAST>({&x}));
    made->kind.setToType(type);
    return made;
  }
  IShapeLayer* addShape(ITensor& x) noexcept override {
    return keep(new Layer<IShapeLayer, Shape, LayerType::kSHAPE>({&x}));
  }
  ISliceLayer* addSlice(ITensor& x, Dims start, Dims size, Dims stride) noexcept override {
    auto* made = keep(new Layer<ISliceLayer, Slice, LayerType::kSLICE>({&x}));
    made->kind.setStart(start);
    made->kind.setStride(stride);
    made->kind.setSize(size);
    return made;
  }
  ISelectLayer* addSelect(ITensor& condition, ITensor& then, ITensor& otherwise) noexcept override {
    return keep(new Layer<ISelectLayer, Select, LayerType::kSELECT>({&condition, &then, &otherwise}));
  }
  IPluginV2Layer* addPluginV2(ITensor* const* given, int32_t count, IPluginV2& plugin) noexcept override {
    return keep(make_plugin_layer(given, count, plugin));
  }
  int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(layers.size()); }
  ILayer* getLayer(int32_t i) const noexcept override { return layers[i]; }
  int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
  ITensor* getInput(int32_t i) const noexcept override { return inputs[i]; }
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(outputs.size()); }
  ITensor* getOutput(int32_t i) const noexcept override { return outputs[i]; }
  void removeTensor(ITensor&) noexcept override {}
  void unmarkOutput(ITensor&) noexcept override { fail("an output is taken back"); }
  void setName(const char* value) noexcept override { name = value; }
  const char* getName() const noexcept override { return name.c_str(); }
  bool hasImplicitBatchDimension() const noexcept override { return false; }
  bool markOutputForShapes(ITensor&) noexcept override { return false; }
  bool unmarkOutputForShapes(ITensor&) noexcept override { return false; }
  bool hasExplicitPrecision() const noexcept override { return false; }
  bool setWeightsName(Weights, const char*) noexcept override { return true; }
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  IBuilder& getBuilder() const noexcept override { return builder; }

  IConvolutionLayer* addConvolution(ITensor&, int32_t, DimsHW, Weights, Weights) noexcept override {
    NOT_HERE("convolution");
  }
  IFullyConnectedLayer* addFullyConnected(ITensor&, int32_t, Weights, Weights) noexcept override {
    NOT_HERE("fully connected");
  }
  IPoolingLayer* addPooling(ITensor&, PoolingType, DimsHW) noexcept override {
    NOT_HERE("pooling");
  }
  ILRNLayer* addLRN(ITensor&, int32_t, float, float, float) noexcept override { NOT_HERE("LRN"); }
  IScaleLayer* addScale(ITensor&, ScaleMode, Weights, Weights, Weights) noexcept override {
    NOT_HERE("scale");
  }
  ISoftMaxLayer* addSoftMax(ITensor&) noexcept override { NOT_HERE("softmax"); }
  IDeconvolutionLayer* addDeconvolution(ITensor&, int32_t, DimsHW, Weights, Weights) noexcept override {
    NOT_HERE("deconvolution");
  }
  IPaddingLayer* addPadding(ITensor&, DimsHW, DimsHW) noexcept override { NOT_HERE("padding"); }
  IReduceLayer* addReduce(ITensor&, ReduceOperation, uint32_t, bool) noexcept override {
    NOT_HERE("reduce");
  }
  ITopKLayer* addTopK(ITensor&, TopKOperation, int32_t, uint32_t) noexcept override {
    NOT_HERE("top k");
  }
  IRaggedSoftMaxLayer* addRaggedSoftMax(ITensor&, ITensor&) noexcept override {
    NOT_HERE("ragged softmax");
  }
  IMatrixMultiplyLayer* addMatrixMultiply(ITensor&, MatrixOperation, ITensor&, MatrixOperation) noexcept override {
    NOT_HERE("matmul");
  }
  IRNNv2Layer* addRNNv2(ITensor&, int32_t, int32_t, int32_t, RNNOperation) noexcept override {
    NOT_HERE("RNN");
  }
  IParametricReLULayer* addParametricReLU(ITensor&, ITensor&) noexcept override {
    NOT_HERE("parametric ReLU");
  }
  IConvolutionLayer* addConvolutionNd(ITensor&, int32_t, Dims, Weights, Weights) noexcept override {
    NOT_HERE("convolution");
  }
  IPoolingLayer* addPoolingNd(ITensor&, PoolingType, Dims) noexcept override {
    NOT_HERE("pooling");
  }
  IDeconvolutionLayer* addDeconvolutionNd(ITensor&, int32_t, Dims, Weights, Weights) noexcept override {
    NOT_HERE("deconvolution");
  }
  IScaleLayer* addScaleNd(ITensor&, ScaleMode, Weights, Weights, Weights, int32_t) noexcept override {
    NOT_HERE("scale");
  }
  IResizeLayer* addResize(ITensor&) noexcept override { NOT_HERE("resize"); }
  ILoop* addLoop() noexcept override { NOT_HERE("loop"); }
  IFillLayer* addFill(Dims, FillOperation) noexcept override { NOT_HERE("fill"); }
  IPaddingLayer* addPaddingNd(ITensor&, Dims, Dims) noexcept override { NOT_HERE("padding"); }
  IDequantizeLayer* addDequantize(ITensor&, ITensor&) noexcept override { NOT_HERE("dequantize"); }
  IQuantizeLayer* addQuantize(ITensor&, ITensor&) noexcept override { NOT_HERE("quantize"); }
  IIfConditional* addIfConditional() noexcept override { NOT_HERE("if"); }
  IScatterLayer* addScatter(ITensor&, ITensor&, ITensor&, ScatterMode) noexcept override {
    NOT_HERE("scatter");
  }
  IEinsumLayer* addEinsum(ITensor* const*, int32_t, const char*) noexcept override {
    NOT_HERE("einsum");
  }
  IAssertionLayer* addAssertion(ITensor&, const char*) noexcept override { NOT_HERE("assertion"); }
  IOneHotLayer* addOneHot(ITensor&, ITensor&, ITensor&, int32_t) noexcept override {
    NOT_HERE("one hot");
  }
  INonZeroLayer* addNonZero(ITensor&) noexcept override { NOT_HERE("non zero"); }
  IGridSampleLayer* addGridSample(ITensor&, ITensor&) noexcept override { NOT_HERE("grid sample"); }
  INMSLayer* addNMS(ITensor&, ITensor&, ITensor&) noexcept override { NOT_HERE("NMS"); }
  IReverseSequenceLayer* addReverseSequence(ITensor&, ITensor&) noexcept override {
    NOT_HERE("reverse sequence");
  }
  INormalizationLayer* addNormalization(ITensor&, ITensor&, ITensor&, uint32_t) noexcept override {
    NOT_HERE("normalization");
  }
};

struct Definition final : INetworkDefinition {
  Network notes;

  Definition() { mImpl = &notes; }
};

std::string words(const ITensor& tensor);

std::string words(const ITensor* tensor) { return tensor ? words(*tensor) : "-"; }

std::string words(const ITensor& tensor) {
  std::string text = std::string(tensor.getName()[0] ? tensor.getName() : "?") + " " +
                     std::to_string(static_cast<int>(tensor.getType())) + " [";
  const Dims dims = tensor.getDimensions();
  for (int i = 0; i < dims.nbDims; ++i) text += (i ? "," : "") + std::to_string(dims.d[i]);
  return text + "]";
}

void* open(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!handle) fail(dlerror());
  return handle;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) fail("usage: recording_network TENSORRT_FOLDER PLUGIN_LIBRARY MODEL PATH_BESIDE_THE_WEIGHTS");
  const std::string folder = std::string(arguments[1]) + "/";
  void* runtime = open(folder + "libnvinfer.so.8");
  open(folder + "libnvinfer_plugin.so.8");
  void* parser_library = open(folder + "libnvonnxparser.so.8");
  const auto registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(runtime, "getPluginRegistry"))();
  if (!registry->loadLibrary(arguments[2])) fail("the registry does not take the plugin library");

  Definition network;
  network.notes.builder.notes.registry = registry;
  using Create = void* (*)(void*, void*, int);
  const auto create = reinterpret_cast<Create>(dlsym(parser_library, "createNvOnnxParser_INTERNAL"));
  const auto parser = static_cast<nvonnxparser::IParser*>(create(&network, &logger, NV_ONNX_PARSER_VERSION));
  if (!parser) fail("there is no parser");
  std::ifstream file(arguments[3], std::ios::binary);
  const std::string model((std::istreambuf_iterator<char>(file)), {});
  const bool is_parsed = parser->parse(model.data(), model.size(), arguments[4]);
  for (int i = 0; i < parser->getNbErrors(); ++i)
    std::printf("error node %d: %s\n", parser->getError(i)->node(), parser->getError(i)->desc());
  for (int i = 0; i < network.getNbInputs(); ++i) std::printf("input %s\n", words(*network.getInput(i)).c_str());
  for (int i = 0; i < network.getNbLayers(); ++i) {
    ILayer* layer = network.getLayer(i);
    const bool is_plugin = layer->getType() == LayerType::kPLUGIN_V2;
    const char* kind = is_plugin ? static_cast<IPluginV2Layer*>(layer)->getPlugin().getPluginType() : "-";
    std::string line = "layer " + std::to_string(static_cast<int>(layer->getType())) + " " + kind + " ";
    line += std::string(layer->getName()) + ":";
    for (int k = 0; k < layer->getNbInputs(); ++k) line += " " + words(layer->getInput(k));
    line += " ->";
    for (int k = 0; k < layer->getNbOutputs(); ++k) line += " " + words(*layer->getOutput(k));
    std::printf("%s\n", line.c_str());
  }
  for (int i = 0; i < network.getNbOutputs(); ++i) std::printf("output %s\n", words(*network.getOutput(i)).c_str());
  std::fflush(stdout);
  std::_Exit(is_parsed && parser->getNbErrors() == 0 ? 0 : 1);
}
