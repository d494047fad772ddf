// Loads a plugin library into a real TensorRT registry from C++, as an engine's process does:
//
//     registry_host LIBNVINFER PLUGINS LOAD GET VERSION    LOAD and GET: where the registry's table of functions has
//                                                          loadLibrary and getCreator, which differs between TensorRT
//                                                          10 and 11; VERSION: of the plugins
//
// Prints a line per finding; leaves with the number of the step that failed.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../plugins/tensorrt/interface10.h"

using namespace edge_awq::trt10;

namespace {

[[noreturn]] void leave(int status) {
  std::fflush(nullptr);
  _exit(status);  // TensorRT without a GPU may crash when it is taken apart
}

template <class Function>
Function entry(void* object, const char* slot) {
  return reinterpret_cast<Function>((*static_cast<void***>(object))[std::atoi(slot)]);
}

int attribute(const FieldCollection& fields, const char* name) {
  for (int i = 0; i < fields.count; ++i)
    if (std::strcmp(fields.fields[i].name, name) == 0) return *static_cast<const int*>(fields.fields[i].data);
  return -1;
}

}  // namespace

int main(int, char** arguments) {
  void* const tensorrt = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  if (!tensorrt) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  void* const registry = reinterpret_cast<void* (*)()>(dlsym(tensorrt, "getPluginRegistry"))();
  if (!entry<void* (*)(void*, const char*)>(registry, arguments[3])(registry, arguments[2])) leave(2);
  const auto get = entry<CreatorInterface* (*)(void*, const char*, const char*, const char*)>(registry, arguments[4]);
  auto* const creator = static_cast<Creator*>(get(registry, "Int4MatMul", arguments[5], "edge.awq"));
  if (!creator) leave(3);
  std::printf("creator %s %s %s %d\n", creator->name(), creator->version(), creator->name_space(),
              creator->field_names()->count);

  int K = 128, N = 8, group_size = 128;
  Field fields[] = {{"K", &K, 5, 1}, {"N", &N, 5, 1}, {"group_size", &group_size, 5, 1}};
  const FieldCollection given{3, fields};
  Plugin* const plugin = creator->create("layer", &given, Phase::kBuild);
  if (!plugin) leave(4);
  Plugin* const clone = plugin->clone();
  const FieldCollection kept = *static_cast<Runtime*>(clone->capability(Capability::kRuntime))->fields_to_serialize();
  std::printf("serialized %d %d %d %d\n", kept.count, attribute(kept, "K"), attribute(kept, "N"),
              attribute(kept, "contract_version"));
  Plugin* const again = creator->create("layer", &kept, Phase::kRuntime);
  if (!again) leave(5);

  const TensorDesc inputs[] = {{{2, {1, 128}}, 1, 0, 1}, {{2, {8, 64}}, 2, 0, 1}, {{2, {8, 1}}, 1, 0, 1},
                               {{2, {8, 1}}, 2, 0, 1}};
  alignas(16) static unsigned char storage[1024];
  const void* const in[] = {&storage, &storage, &storage, &storage};
  void* const out[] = {&storage};
  std::printf("enqueue %d\n", static_cast<Runtime*>(again->capability(Capability::kRuntime))
                                  ->enqueue(inputs, nullptr, in, out, nullptr, nullptr));
  K = 100;
  std::printf("refused %d\n", creator->create("layer", &given, Phase::kBuild) == nullptr);
  delete clone;
  delete again;
  delete plugin;
  leave(0);
}
