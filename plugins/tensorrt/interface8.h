// The part of TensorRT 8.6's binary interface that plugins (IPluginV2DynamicExt) need, restated as interface10.h does
// for later versions. Functions that 8.6 calls obsolete keep their places, and answer what its own headers answer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge_awq::trt8 {

constexpr int32_t kTensorRtVersion = 8600;  // the oldest that has this interface
constexpr int32_t kDynamicExtension = 3;    // which of the plugin interfaces this is, in the top byte
constexpr int32_t kLinearFormat = 0;

struct Dims {
  int32_t rank;
  int32_t sizes[8];
};

struct TensorDesc {
  Dims dims;
  int32_t type, format;
  float scale;
};

struct DynamicTensorDesc {
  TensorDesc desc;
  Dims min, max;
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

struct Expression;

struct ExpressionMaker {
  virtual ~ExpressionMaker() = default;
  virtual const Expression* constant(int32_t value) = 0;
};

struct ExpressionBuilder {
  virtual ~ExpressionBuilder() = default;
  ExpressionMaker* maker;
};

struct DimsExpressions {
  int32_t rank;
  const Expression* sizes[8];
};

// IPluginV2, IPluginV2Ext and IPluginV2DynamicExt in one: each adds its functions behind those before it.
struct Plugin {
  // IPluginV2
  virtual int32_t tensorrt_version() const noexcept {
    return kDynamicExtension << 24 | kTensorRtVersion;
  }
  virtual const char* name() const noexcept = 0;
  virtual const char* version() const noexcept = 0;
  virtual int32_t output_count() const noexcept = 0;
  virtual Dims obsolete_output_dims(int32_t, const Dims*, int32_t) noexcept { return {-1, {}}; }
  virtual bool obsolete_supports(int32_t, int32_t) const noexcept { return false; }
  virtual void obsolete_configure_with_format(const Dims*, int32_t, const Dims*, int32_t, int32_t, int32_t,
                                              int32_t) noexcept {}
  virtual int32_t initialize() noexcept = 0;
  virtual void terminate() noexcept = 0;
  virtual size_t obsolete_workspace_bytes(int32_t) const noexcept { return 0; }
  virtual int32_t obsolete_enqueue(int32_t, const void* const*, void* const*, void*, void*) noexcept { return 1; }
  virtual size_t serialized_bytes() const noexcept = 0;
  virtual void serialize(void* buffer) const noexcept = 0;
  virtual void destroy() noexcept = 0;
  virtual Plugin* clone() const noexcept = 0;
  virtual void set_name_space(const char* name) noexcept = 0;
  virtual const char* name_space() const noexcept = 0;
  virtual ~Plugin() noexcept = default;

  // IPluginV2Ext
  virtual int32_t output_type(int32_t output, const int32_t* in_types, int32_t in_count) const noexcept = 0;
  virtual bool obsolete_is_broadcast(int32_t, const bool*, int32_t) const noexcept { return false; }
  virtual bool obsolete_can_broadcast(int32_t) const noexcept { return true; }
  virtual void obsolete_configure(const Dims*, int32_t, const Dims*, int32_t, const int32_t*, const int32_t*,
                                  const bool*, const bool*, int32_t, int32_t) noexcept {}
  virtual void attach(void*, void*, void*) noexcept {}
  virtual void detach() noexcept {}

  // IPluginV2DynamicExt
  virtual DimsExpressions output_dims(int32_t output, const DimsExpressions* in, int32_t in_count,
                                      ExpressionBuilder& builder) noexcept = 0;
  virtual bool supports(int32_t position, const TensorDesc* in_out, int32_t in_count, int32_t out_count) noexcept = 0;
  virtual void configure(const DynamicTensorDesc* in, int32_t in_count, const DynamicTensorDesc* out,
                         int32_t out_count) noexcept = 0;
  virtual size_t workspace_bytes(const TensorDesc* in, int32_t in_count, const TensorDesc* out,
                                 int32_t out_count) const noexcept = 0;
  virtual int32_t enqueue(const TensorDesc* in_desc, const TensorDesc* out_desc, const void* const* in,
                          void* const* out, void* workspace, void* stream) noexcept = 0;
};

struct Creator {
  virtual int32_t tensorrt_version() const noexcept { return kTensorRtVersion; }
  virtual const char* name() const noexcept = 0;
  virtual const char* version() const noexcept = 0;
  virtual const FieldCollection* field_names() noexcept = 0;
  virtual Plugin* create(const char* name, const FieldCollection* fields) noexcept = 0;
  virtual Plugin* deserialize(const char* name, const void* data, size_t bytes) noexcept = 0;
  virtual void set_name_space(const char* name) noexcept = 0;
  virtual const char* name_space() const noexcept = 0;
  virtual ~Creator() = default;
};

}  // namespace edge_awq::trt8
