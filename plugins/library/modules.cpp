#include "modules.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "images.h"

namespace edge_awq {
namespace {

constexpr int kNewestDevice = 90, kMostMultiprocessors = 192;  // of any GPU

struct Function {
  Handle handle = nullptr;
  unsigned shared_bytes = 0;  // of dynamic shared memory, that launches were allowed
};

struct Context {
  Device device;
  std::map<std::string, Handle> modules;      // by source
  std::map<std::string, Function> functions;  // by kernel
};

// A context is known by its address and, where the driver tells it, its number: addresses come back, numbers do not.
using ContextKey = std::pair<Handle, unsigned long long>;

std::mutex mutex;
std::map<ContextKey, Context> contexts;

std::string read_device(Device& device) {
  const Driver& d = driver();
  int id = 0, major = 0, minor = 0;
  if (const int status = d.get_context_device(&id)) return driver_error("cuCtxGetDevice", status);
  for (const auto& [attribute, value] : {std::pair{DeviceAttribute::kMajor, &major},
                                         std::pair{DeviceAttribute::kMinor, &minor},
                                         std::pair{DeviceAttribute::kMultiprocessors, &device.multiprocessors},
                                         std::pair{DeviceAttribute::kIntegrated, &device.is_integrated}})
    if (const int status = d.get_device_attribute(value, static_cast<int>(attribute), id))
      return driver_error("cuDeviceGetAttribute", status);
  device.compute_capability = 10 * major + minor;
  return "";
}

std::string current_context(Context*& context) {
  const Driver& d = driver();
  if (!d.missing.empty()) return d.missing;
  ContextKey key{};
  if (const int status = d.get_context(&key.first)) return driver_error("cuCtxGetCurrent", status);
  if (!key.first) return "no CUDA context is current in this thread";
  if (d.get_context_id) {
    if (const int status = d.get_context_id(key.first, &key.second)) return driver_error("cuCtxGetId", status);
  }
  const auto [place, is_new] = contexts.try_emplace(key);
  context = &place->second;
  if (!is_new) return "";
  std::string reason = read_device(context->device);
  if (!reason.empty()) contexts.erase(place);
  return reason;
}

// Machine code runs on its own generation (the tens), at its own revision or a later one; PTX on any GPU from its
// architecture on.
bool runs(const Image& image, int device) {
  if (image.is_ptx) return image.architecture <= device;
  return image.architecture / 10 == device / 10 && image.architecture <= device;
}

// The newest machine code, or else the newest PTX, that the device takes.
const Image* choose(const char* source, int device) {
  const Image* best = nullptr;
  for (size_t i = 0; i < kImageCount; ++i) {
    const Image& image = kImages[i];
    if (std::strcmp(image.source, source) != 0 || !runs(image, device)) continue;
    const bool is_better = !best || (best->is_ptx && !image.is_ptx) ||
                           (best->is_ptx == image.is_ptx && best->architecture < image.architecture);
    if (is_better) best = &image;
  }
  return best;
}

std::string built_for() {
  std::string text;
  for (size_t i = 0; i < kImageCount; ++i) {
    if (std::strcmp(kImages[i].source, kImages[0].source) != 0) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(kImages[i].architecture / 10) + "." +
            std::to_string(kImages[i].architecture % 10) + (kImages[i].is_ptx ? " and newer" : "");
  }
  return text;
}

std::string load_module(Context& context, const char* source, Handle& module) {
  if (const auto known = context.modules.find(source); known != context.modules.end()) {
    module = known->second;
    return "";
  }
  const int device = context.device.compute_capability;
  const Image* image = choose(source, device);
  if (!image)
    return "this GPU has compute capability " + std::to_string(device / 10) + "." + std::to_string(device % 10) +
           "; " + source + " was built for " + built_for();
  if (const int status = driver().load_module(&module, image->begin))
    return driver_error("cuModuleLoadData", status) + " (" + source + ", built for " +
           (image->is_ptx ? "compute_" : "sm_") + std::to_string(image->architecture) + ")";
  context.modules[source] = module;
  return "";
}

std::string load_kernel(Context& context, const KernelName& name, Function*& function) {
  if (const auto known = context.functions.find(name.kernel); known != context.functions.end()) {
    function = &known->second;
    return "";
  }
  Handle module = nullptr, handle = nullptr;
  if (std::string reason = load_module(context, name.source, module); !reason.empty()) return reason;
  if (const int status = driver().get_function(&handle, module, name.kernel))
    return driver_error("cuModuleGetFunction", status);
  function = &(context.functions[name.kernel] = {handle});
  return "";
}

// However little is asked for: a kernel may have 48 KiB without, less what it has of static shared memory. Never less
// than before, since another thread may be about to launch with that.
std::string allow_shared(Function& function, unsigned bytes) {
  if (bytes <= function.shared_bytes) return "";
  const int status =
      driver().set_function_attribute(function.handle, kMaxDynamicSharedBytes, static_cast<int>(bytes));
  if (status) return driver_error("cuFuncSetAttribute", status);
  function.shared_bytes = bytes;
  return "";
}

}  // namespace

std::vector<int> Device::all_multiprocessors() const {
  const int most = compute_capability == 87 ? 16 : 20;  // AGX Orin, AGX Thor
  std::vector<int> all = {multiprocessors};
  for (int count = 2; is_integrated && count <= most; count += 2) all.push_back(count);
  return all;
}

std::string current_device(Device& device) {
  const std::lock_guard lock(mutex);
  Context* context = nullptr;
  if (std::string reason = current_context(context); !reason.empty()) return reason;
  device = context->device;
  return "";
}

std::string find_kernel(const char* name, unsigned shared_bytes, Handle& function, Device& device) {
  const std::lock_guard lock(mutex);
  Context* context = nullptr;
  if (std::string reason = current_context(context); !reason.empty()) return reason;
  device = context->device;
  const auto* const known = std::find_if(kKernels, kKernels + kKernelCount, [name](const KernelName& each) {
    return std::strcmp(each.kernel, name) == 0;
  });
  if (known == kKernels + kKernelCount) return "this library has no such kernel";
  Function* found = nullptr;
  if (std::string reason = load_kernel(*context, *known, found); !reason.empty()) return reason;
  function = found->handle;
  return allow_shared(*found, shared_bytes);
}

std::string load_kernels() {
  const std::lock_guard lock(mutex);
  Context* context = nullptr;
  if (std::string reason = current_context(context); !reason.empty()) return reason;
  for (size_t i = 0; i < kKernelCount; ++i) {
    Function* function = nullptr;
    if (std::string reason = load_kernel(*context, kKernels[i], function); !reason.empty())
      return reason + " (" + kKernels[i].kernel + ")";
  }
  return "";
}

Device device_or_any() {
  Device device;
  if (!current_device(device).empty()) device = {kNewestDevice, kMostMultiprocessors, 0};
  return device;
}

}  // namespace edge_awq
