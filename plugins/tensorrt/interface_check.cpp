// Our restated interfaces against TensorRT's own headers, where $TENSORRT_INCLUDE_DIR is set; nothing otherwise. What a
// compiler can compare it compares here; the places of virtual functions are compared when a test asks.
#ifdef EDGE_AWQ_TENSORRT_HEADERS

#include <NvInferRuntime.h>

#include <cstring>
#include <string>

#include "../library/capi.h"
#include "../library/fields.h"

#if NV_TENSORRT_MAJOR >= 10
#include "interface10.h"
namespace ours = edge_awq::trt10;
#else
#include "interface8.h"
namespace ours = edge_awq::trt8;
#endif

namespace {

using namespace nvinfer1;
using edge_awq::FieldType;
using edge_awq::Type;

static_assert(sizeof(ours::Dims) == sizeof(Dims) && sizeof(ours::TensorDesc) == sizeof(PluginTensorDesc));
static_assert(offsetof(ours::TensorDesc, type) == offsetof(PluginTensorDesc, type));
static_assert(offsetof(ours::TensorDesc, format) == offsetof(PluginTensorDesc, format));
static_assert(sizeof(ours::DynamicTensorDesc) == sizeof(DynamicPluginTensorDesc));
static_assert(offsetof(ours::DynamicTensorDesc, max) == offsetof(DynamicPluginTensorDesc, max));
static_assert(sizeof(ours::Field) == sizeof(PluginField) && sizeof(ours::FieldCollection) == sizeof(PluginFieldCollection));
static_assert(offsetof(ours::Field, type) == offsetof(PluginField, type));
static_assert(sizeof(ours::DimsExpressions) == sizeof(DimsExprs));
static_assert(sizeof(ours::ExpressionBuilder) == sizeof(IExprBuilder));
static_assert(ours::kLinearFormat == static_cast<int>(TensorFormat::kLINEAR));
static_assert(static_cast<int>(Type::kFloat32) == static_cast<int>(DataType::kFLOAT));
static_assert(static_cast<int>(Type::kFloat16) == static_cast<int>(DataType::kHALF));
static_assert(static_cast<int>(Type::kInt8) == static_cast<int>(DataType::kINT8));
static_assert(static_cast<int>(Type::kInt32) == static_cast<int>(DataType::kINT32));
static_assert(static_cast<int>(FieldType::kFloat32) == static_cast<int>(PluginFieldType::kFLOAT32));
static_assert(static_cast<int>(FieldType::kFloat64) == static_cast<int>(PluginFieldType::kFLOAT64));
static_assert(static_cast<int>(FieldType::kInt32) == static_cast<int>(PluginFieldType::kINT32));

// Where a virtual function lies in its table, as the Itanium C++ ABI (x86-64, aarch64) holds it in a pointer to member.
template <class Function>
long slot(Function function) {
  struct {
    intptr_t address, adjustment;
  } pointer;
  static_assert(sizeof pointer == sizeof function);
  std::memcpy(&pointer, &function, sizeof pointer);
#ifdef __aarch64__
  const bool is_virtual = pointer.adjustment & 1;
  const intptr_t offset = pointer.address;
#else
  const bool is_virtual = pointer.address & 1;
  const intptr_t offset = pointer.address - 1;
#endif
  return is_virtual ? offset / static_cast<long>(sizeof(void*)) : -1;
}

std::string mismatches;
int compared;

template <class Ours, class Theirs>
void compare(const char* name, Ours mine, Theirs theirs) {
  ++compared;
  if (slot(mine) == slot(theirs) && slot(mine) >= 0) return;
  mismatches += std::string(name) + " is in place " + std::to_string(slot(theirs)) + ", ours in " +
                std::to_string(slot(mine)) + "\n";
}

#define COMPARE(mine, theirs) compare(#theirs, &ours::mine, &theirs)

#if NV_TENSORRT_MAJOR >= 10
static_assert(static_cast<int>(Type::kInt64) == static_cast<int>(DataType::kINT64));
static_assert(static_cast<int>(FieldType::kInt64) == static_cast<int>(PluginFieldType::kINT64));
static_assert(static_cast<int>(ours::Capability::kBuild) == static_cast<int>(PluginCapabilityType::kBUILD));
static_assert(static_cast<int>(ours::Capability::kRuntime) == static_cast<int>(PluginCapabilityType::kRUNTIME));
static_assert(static_cast<int>(ours::Phase::kRuntime) == static_cast<int>(TensorRTPhase::kRUNTIME));
static_assert(sizeof(ours::Info) == sizeof(InterfaceInfo));

void compare_all() {
  COMPARE(Versioned::language, IVersionedInterface::getAPILanguage);
  COMPARE(Versioned::info, IVersionedInterface::getInterfaceInfo);
  COMPARE(Plugin::capability, IPluginV3::getCapabilityInterface);
  COMPARE(Plugin::clone, IPluginV3::clone);
  COMPARE(Core::name, IPluginV3OneCore::getPluginName);
  COMPARE(Core::version, IPluginV3OneCore::getPluginVersion);
  COMPARE(Core::name_space, IPluginV3OneCore::getPluginNamespace);
  COMPARE(Build::configure, IPluginV3OneBuildV2::configurePlugin);
  COMPARE(Build::output_types, IPluginV3OneBuildV2::getOutputDataTypes);
  COMPARE(Build::output_shapes, IPluginV3OneBuildV2::getOutputShapes);
  COMPARE(Build::supports, IPluginV3OneBuildV2::supportsFormatCombination);
  COMPARE(Build::output_count, IPluginV3OneBuildV2::getNbOutputs);
  COMPARE(Build::workspace_bytes, IPluginV3OneBuildV2::getWorkspaceSize);
  COMPARE(Build::tactics, IPluginV3OneBuildV2::getValidTactics);
  COMPARE(Build::tactic_count, IPluginV3OneBuildV2::getNbTactics);
  COMPARE(Build::timing_cache_id, IPluginV3OneBuildV2::getTimingCacheID);
  COMPARE(Build::format_limit, IPluginV3OneBuildV2::getFormatCombinationLimit);
  COMPARE(Build::metadata, IPluginV3OneBuildV2::getMetadataString);
  COMPARE(Build::aliased_input, IPluginV3OneBuildV2::getAliasedInput);
  COMPARE(Runtime::set_tactic, IPluginV3OneRuntime::setTactic);
  COMPARE(Runtime::on_shape_change, IPluginV3OneRuntime::onShapeChange);
  COMPARE(Runtime::enqueue, IPluginV3OneRuntime::enqueue);
  COMPARE(Runtime::attach, IPluginV3OneRuntime::attachToContext);
  COMPARE(Runtime::fields_to_serialize, IPluginV3OneRuntime::getFieldsToSerialize);
  COMPARE(Creator::create, IPluginCreatorV3One::createPlugin);
  COMPARE(Creator::field_names, IPluginCreatorV3One::getFieldNames);
  COMPARE(Creator::name, IPluginCreatorV3One::getPluginName);
  COMPARE(Creator::version, IPluginCreatorV3One::getPluginVersion);
  COMPARE(Creator::name_space, IPluginCreatorV3One::getPluginNamespace);
  COMPARE(ExpressionMaker::constant, apiv::VExprBuilder::constant);
}
#else
// Functions of one name: which is meant, by their arguments.
using OutputDims = DimsExprs (IPluginV2DynamicExt::*)(int32_t, const DimsExprs*, int32_t, IExprBuilder&) noexcept;
using WorkspaceBytes = size_t (IPluginV2DynamicExt::*)(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                                                       int32_t) const noexcept;
using Enqueue = int32_t (IPluginV2DynamicExt::*)(const PluginTensorDesc*, const PluginTensorDesc*, const void* const*,
                                                 void* const*, void*, cudaStream_t) noexcept;
using Configure = void (IPluginV2DynamicExt::*)(const DynamicPluginTensorDesc*, int32_t,
                                                const DynamicPluginTensorDesc*, int32_t) noexcept;

void compare_all() {
  COMPARE(Plugin::tensorrt_version, IPluginV2::getTensorRTVersion);
  COMPARE(Plugin::name, IPluginV2::getPluginType);
  COMPARE(Plugin::version, IPluginV2::getPluginVersion);
  COMPARE(Plugin::output_count, IPluginV2::getNbOutputs);
  COMPARE(Plugin::obsolete_output_dims, IPluginV2::getOutputDimensions);
  COMPARE(Plugin::obsolete_supports, IPluginV2::supportsFormat);
  COMPARE(Plugin::obsolete_configure_with_format, IPluginV2::configureWithFormat);
  COMPARE(Plugin::initialize, IPluginV2::initialize);
  COMPARE(Plugin::terminate, IPluginV2::terminate);
  COMPARE(Plugin::obsolete_workspace_bytes, IPluginV2::getWorkspaceSize);
  COMPARE(Plugin::obsolete_enqueue, IPluginV2::enqueue);
  COMPARE(Plugin::serialized_bytes, IPluginV2::getSerializationSize);
  COMPARE(Plugin::serialize, IPluginV2::serialize);
  COMPARE(Plugin::destroy, IPluginV2::destroy);
  COMPARE(Plugin::clone, IPluginV2::clone);
  COMPARE(Plugin::set_name_space, IPluginV2::setPluginNamespace);
  COMPARE(Plugin::name_space, IPluginV2::getPluginNamespace);
  COMPARE(Plugin::output_type, IPluginV2Ext::getOutputDataType);
  COMPARE(Plugin::obsolete_is_broadcast, IPluginV2Ext::isOutputBroadcastAcrossBatch);
  COMPARE(Plugin::obsolete_can_broadcast, IPluginV2Ext::canBroadcastInputAcrossBatch);
  COMPARE(Plugin::obsolete_configure, IPluginV2Ext::configurePlugin);
  COMPARE(Plugin::attach, IPluginV2Ext::attachToContext);
  COMPARE(Plugin::detach, IPluginV2Ext::detachFromContext);
  compare("getOutputDimensions", &ours::Plugin::output_dims,
          static_cast<OutputDims>(&IPluginV2DynamicExt::getOutputDimensions));
  COMPARE(Plugin::supports, IPluginV2DynamicExt::supportsFormatCombination);
  compare("configurePlugin", &ours::Plugin::configure, static_cast<Configure>(&IPluginV2DynamicExt::configurePlugin));
  compare("getWorkspaceSize", &ours::Plugin::workspace_bytes,
          static_cast<WorkspaceBytes>(&IPluginV2DynamicExt::getWorkspaceSize));
  compare("enqueue", &ours::Plugin::enqueue, static_cast<Enqueue>(&IPluginV2DynamicExt::enqueue));
  COMPARE(Creator::tensorrt_version, IPluginCreator::getTensorRTVersion);
  COMPARE(Creator::name, IPluginCreator::getPluginName);
  COMPARE(Creator::version, IPluginCreator::getPluginVersion);
  COMPARE(Creator::field_names, IPluginCreator::getFieldNames);
  COMPARE(Creator::create, IPluginCreator::createPlugin);
  COMPARE(Creator::deserialize, IPluginCreator::deserializePlugin);
  COMPARE(Creator::set_name_space, IPluginCreator::setPluginNamespace);
  COMPARE(Creator::name_space, IPluginCreator::getPluginNamespace);
  COMPARE(ExpressionMaker::constant, apiv::VExprBuilder::constant);
}
#endif

}  // namespace

// A line for each virtual function that is not where TensorRT's headers have it.
EDGE_AWQ_API const char* edge_awq_interface_mismatches() {
  if (!compared) compare_all();
  return mismatches.c_str();
}

// How many were compared.
EDGE_AWQ_API int edge_awq_interface_functions() { return compared; }

#endif
