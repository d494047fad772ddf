// The part of TensorRT 10.3 to 11's binary interface that plugins (IPluginV3) need, restated: the order of virtual
// functions and the layout of structures, under our own names, so that neither its headers nor its libraries are
// needed. interface_check.cpp compares this with the real headers where they are.
//
// Never restated, because they changed from 10 to 11: IPluginRegistry and ILoggerFinder.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge_awq::trt10 {

enum class Capability : int32_t { kCore = 0, kBuild = 1, kRuntime = 2 };
enum class Phase : int32_t { kBuild = 0, kRuntime = 1 };
enum class Language : int32_t { kCpp = 0 };
constexpr int32_t kLinearFormat = 0;

struct Info {
  const char* kind;
  int32_t major, minor;
};

struct Dims {
  int32_t rank;
  int64_t sizes[8];
};

struct TensorDesc {
  Dims dims;
  int32_t type, format;
  float scale;
};

struct DynamicTensorDesc {
  TensorDesc desc;
  Dims min, max, opt;
};

struct Field {
  const char* name;
  const void* data;
  int32_t type, length;
};

struct FieldCollection {
  int32_t count;
  const Field* fields;
};

// A size that is known when the engine runs. Opaque.
struct Expression;

// What ExpressionBuilder hands its calls to.
struct ExpressionMaker {
  virtual ~ExpressionMaker() = default;
  virtual const Expression* constant(int64_t value) = 0;
};

struct ExpressionBuilder {
  virtual ~ExpressionBuilder() = default;
  ExpressionMaker* maker;
};

struct DimsExpressions {
  int32_t rank;
  const Expression* sizes[8];
};

struct Versioned {
  virtual Language language() const noexcept { return Language::kCpp; }
  virtual Info info() const noexcept = 0;
  virtual ~Versioned() noexcept = default;
};

struct PluginCapability : Versioned {};

struct Plugin : Versioned {
  Info info() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual PluginCapability* capability(Capability which) noexcept = 0;
  virtual Plugin* clone() noexcept = 0;
};

struct Core : PluginCapability {
  Info info() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual const char* name() const noexcept = 0;
  virtual const char* version() const noexcept = 0;
  virtual const char* name_space() const noexcept = 0;
};

// Version 2, with which outputs may overwrite inputs.
struct Build : PluginCapability {
  Info info() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 2, 0}; }
  virtual int32_t configure(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc* out,
                            int32_t out_count) noexcept = 0;
  virtual int32_t output_types(int32_t* types, int32_t out_count, const int32_t* in_types,
                               int32_t in_count) const noexcept = 0;
  virtual int32_t output_shapes(const DimsExpressions* in, int32_t in_count, const DimsExpressions* shape_inputs,
                                int32_t shape_input_count, DimsExpressions* out, int32_t out_count,
                                ExpressionBuilder& builder) noexcept = 0;
  virtual bool supports(int32_t position, const DynamicTensorDesc* in_out, int32_t in_count,
                        int32_t out_count) noexcept = 0;
  virtual int32_t output_count() const noexcept = 0;
  virtual size_t workspace_bytes(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc* out,
                                 int32_t out_count) const noexcept = 0;
  virtual int32_t tactics(int32_t*, int32_t) noexcept { return 0; }
  virtual int32_t tactic_count() noexcept { return 0; }
  virtual const char* timing_cache_id() noexcept { return nullptr; }
  virtual int32_t format_limit() noexcept { return 100; }
  virtual const char* metadata() noexcept { return nullptr; }
  virtual int32_t aliased_input(int32_t output) noexcept = 0;
};

struct ResourceContext;

struct Runtime : PluginCapability {
  Info info() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
  virtual int32_t set_tactic(int32_t) noexcept { return 0; }
  virtual int32_t on_shape_change(const TensorDesc* in, int32_t in_count, const TensorDesc* out,
                                  int32_t out_count) noexcept = 0;
  virtual int32_t enqueue(const TensorDesc* in_desc, const TensorDesc* out_desc, const void* const* in,
                          void* const* out, void* workspace, void* stream) noexcept = 0;
  virtual Plugin* attach(ResourceContext* context) noexcept = 0;
  virtual const FieldCollection* fields_to_serialize() noexcept = 0;
};

struct CreatorInterface : Versioned {};

struct Creator : CreatorInterface {
  Info info() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
  virtual Plugin* create(const char* name, const FieldCollection* fields, Phase phase) noexcept = 0;
  virtual const FieldCollection* field_names() noexcept = 0;
  virtual const char* name() const noexcept = 0;
  virtual const char* version() const noexcept = 0;
  virtual const char* name_space() const noexcept = 0;
};

}  // namespace edge_awq::trt10
