// A libcuda.so.1 for tests: device memory is host memory, kernels run on fibers, every call that matters is written
// down. Faults are made to order. Streams are one: everything happens at once, or when a captured graph is launched.
// ptx/driver.cpp is the same driver over a machine that executes the kernels' PTX.
#ifdef EDGE_AWQ_PTX
#include "ptx/device.h"
#else
#include "fibers_device.h"
#endif

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>

namespace {

using device::Arguments, device::Recorded, device::kInvalidValue, device::kMostArgumentBytes;

constexpr int kOutOfMemory = 2, kInvalidContext = 201, kNotFound = 500;
constexpr int kMaxDynamicShared = 8, kProgrammaticSerialization = 6;
constexpr int kMultiprocessors = 16, kIntegrated = 18, kMajor = 75, kMinor = 76;
constexpr size_t kSharedWithoutAsking = 48 * 1024;  // of a block, static and dynamic

struct Module {
  std::string image;
};

struct Fake {
  std::string calls;  // a line each
  std::map<std::string, int> settings = {{"compute_capability", device::kComputeCapability},
                                         {"multiprocessors", 16}, {"context", 1},  {"context_id", 1},
                                         {"run", 1},              {"schedule", 0}, {"needs_context", 0}};
  std::map<std::string, int> faults;  // function: status
  std::set<std::string> kernels;      // interned names: a CUfunction is one of these
  std::map<void*, size_t> allocations;
  std::map<std::string, size_t> allowed;  // dynamic shared memory, by kernel, as set by cuFuncSetAttribute
  std::vector<Recorded> captured;
  bool is_capturing = false;
  Arguments last;
} fake;

// What a process that is not asked with fake_set() starts with: $EDGE_AWQ_FAKE_SETTINGS, such as "schedule=1 run=0".
const bool has_settings = [] {
  const char* const given = std::getenv("EDGE_AWQ_FAKE_SETTINGS");
  std::istringstream words(given ? given : "");
  for (std::string word; words >> word;) {
    const size_t sign = word.find('=');
    fake.settings[word.substr(0, sign)] = std::stoi(word.substr(sign + 1));
  }
  return given != nullptr;
}();

thread_local std::vector<void*> contexts;  // of the calling thread, the current one last

int outcome(const char* function) {
  const bool has_context = !contexts.empty() && contexts.back();
  if (fake.settings["needs_context"] && !has_context && !std::strstr("cuInit cuDeviceGetAttribute", function))
    return kInvalidContext;
  const auto fault = fake.faults.find(function);
  return fault == fake.faults.end() ? 0 : fault->second;
}

void note(const std::string& line) { fake.calls += line + "\n"; }

// Copies as much as is mapped: how large a kernel's arguments are only the compiled kernel knows.
Arguments copy_arguments(const void* from) {
  Arguments copy{};
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t left = page - reinterpret_cast<uintptr_t>(from) % page;
  unsigned char is_resident;
  const bool has_next = mincore(const_cast<char*>(static_cast<const char*>(from)) + left, 1, &is_resident) == 0;
  std::memcpy(&copy, from, has_next ? kMostArgumentBytes : std::min(left, kMostArgumentBytes));
  return copy;
}

// Whether a device would have launched it, with the static shared memory that it has.
bool has_room(const Recorded& launch, size_t static_bytes) {
  const size_t all = launch.shared_bytes + static_bytes;
  const int capability = fake.settings["compute_capability"];
  const size_t most = capability == 86 || capability == 89 || capability >= 120 ? 99 : capability >= 90 ? 227 : 163;
  const auto allowed = fake.allowed.find(launch.kernel);
  if (all > most * 1024) return false;
  return allowed == fake.allowed.end() ? all <= kSharedWithoutAsking : launch.shared_bytes <= allowed->second;
}

int run(const Recorded& launch) {
  if (launch.host) return launch.host(launch.given), 0;
  if (!fake.settings["run"]) return 0;
  return device::run(launch, static_cast<unsigned>(fake.settings["schedule"]), fake.settings["rounds_once"],
                     [&](size_t static_bytes) { return has_room(launch, static_bytes); });
}

int launch(const char* function, void* kernel, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared,
           void* stream, void** parameters, const std::string& attributes, bool is_dependent) {
  const std::string& name = *static_cast<std::string*>(kernel);
  std::string line = std::string(function) + " " + name;
  for (unsigned value : grid) line += " " + std::to_string(value);
  for (unsigned value : block) line += " " + std::to_string(value);
  note(line + " " + std::to_string(shared) + " " + std::to_string(reinterpret_cast<uintptr_t>(stream)) + attributes);
  fake.last = copy_arguments(parameters[0]);
  if (const int status = outcome(function)) return status;
  const Recorded recorded{name, grid[0], block[0], shared, fake.last, nullptr, nullptr, is_dependent};
  if (!fake.is_capturing) return run(recorded);
  fake.captured.push_back(recorded);
  return 0;
}

}  // namespace

extern "C" {

// ---- for tests ----

const char* fake_calls() { return fake.calls.c_str(); }
void fake_forget() { fake.calls.clear(); }
// Memory of the host's becomes the device's, and no longer is.
void fake_lend(const void* begin, size_t bytes) { device::allocate(begin, bytes); }
void fake_take_back(const void* begin) { device::free(begin); }

void fake_set(const char* name, int value) {
  fake.settings[name] = value;
  if (std::strcmp(name, "context_id") == 0) fake.allowed.clear();  // a new context has functions of its own
}
void fake_fail(const char* function, int status) { fake.faults[function] = status; }
void fake_work() { fake.faults.clear(); }
const void* fake_arguments() { return &fake.last; }
int64_t fake_allocations() { return static_cast<int64_t>(fake.allocations.size()); }

// ---- the driver ----

int cuInit(unsigned) { return outcome("cuInit"); }
int cuDriverGetVersion(int* version) { return *version = 12060, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "fake"), 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t{1} << 34, 0; }

struct Named {
  const char *name, *text;
};

const std::map<int, Named> kNames = {{kInvalidValue, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
                                     {kOutOfMemory, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
                                     {kInvalidContext, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
                                     {kNotFound, {"CUDA_ERROR_NOT_FOUND", nullptr}}};

int cuGetErrorName(int status, const char** name) {
  const auto known = kNames.find(status);
  *name = known == kNames.end() ? nullptr : known->second.name;
  return *name ? 0 : kInvalidValue;
}

int cuGetErrorString(int status, const char** text) {
  static std::string fault;
  fault = device::fault();
  const auto known = kNames.find(status);
  *text = known != kNames.end() ? known->second.text : fault.empty() ? nullptr : fault.c_str();
  return *text ? 0 : kInvalidValue;
}

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = reinterpret_cast<void*>(1), 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void* context) {
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(context);
  return 0;
}
int cuCtxPushCurrent_v2(void* context) { return note("cuCtxPushCurrent"), contexts.push_back(context), 0; }
int cuCtxPopCurrent_v2(void** context) {
  note("cuCtxPopCurrent");
  if (!contexts.empty()) contexts.pop_back();
  return *context = reinterpret_cast<void*>(1), 0;
}
int cuCtxSynchronize() { return outcome("cuCtxSynchronize"); }

int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(static_cast<uintptr_t>(fake.settings["context"]));
  return outcome("cuCtxGetCurrent");
}

int cuCtxGetId(void*, unsigned long long* id) {
  *id = static_cast<unsigned long long>(fake.settings["context_id"]);
  return 0;
}

int cuCtxGetDevice(int* device) { return *device = 0, outcome("cuCtxGetDevice"); }

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int capability = fake.settings["compute_capability"];
  *value = attribute == kMajor   ? capability / 10
           : attribute == kMinor ? capability % 10
           : attribute == kMultiprocessors ? fake.settings["multiprocessors"]
           : attribute == kIntegrated      ? fake.settings["integrated"]
                                         : 1;
  return outcome("cuDeviceGetAttribute");
}

int cuModuleLoadData(void** module, const void* image) {
  const std::string text(static_cast<const char*>(image), strnlen(static_cast<const char*>(image), 64));
  note("cuModuleLoadData " + text.substr(0, text.find('\n')));
  *module = new Module{text};
  if (const int status = outcome("cuModuleLoadData")) return status;
  return device::load(static_cast<const char*>(image));
}

int cuModuleGetFunction(void** function, void*, const char* name) {
  note(std::string("cuModuleGetFunction ") + name);
  if (!device::has(name)) return kNotFound;
  *function = const_cast<std::string*>(&*fake.kernels.insert(name).first);
  return outcome("cuModuleGetFunction");
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  note("cuFuncSetAttribute " + *static_cast<std::string*>(function) + " " + std::to_string(attribute) + " " +
       std::to_string(value));
  if (attribute == kMaxDynamicShared) fake.allowed[*static_cast<std::string*>(function)] = static_cast<size_t>(value);
  return outcome("cuFuncSetAttribute");
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void**) {
  return launch("cuLaunchKernel", function, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters, "", false);
}

struct Attribute {
  int id;
  char padding[4];
  int value[16];
};

struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  unsigned count;
};

int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
  std::string attributes;
  bool is_dependent = false;
  for (unsigned i = 0; i < config->count; ++i) {
    is_dependent |= config->attributes[i].id == kProgrammaticSerialization && config->attributes[i].value[0] == 1;
    attributes += " " + std::to_string(config->attributes[i].id) + "=" + std::to_string(config->attributes[i].value[0]);
  }
  return launch("cuLaunchKernelEx", function, config->grid, config->block, config->shared, config->stream, parameters,
                attributes, is_dependent);
}

int cuLaunchHostFunc(void*, void (*function)(void*), void* given) {
  note("cuLaunchHostFunc");
  if (const int status = outcome("cuLaunchHostFunc")) return status;
  const Recorded recorded{"", 0, 0, 0, {}, function, given};
  if (!fake.is_capturing) return run(recorded);
  fake.captured.push_back(recorded);
  return 0;
}

int cuMemAlloc_v2(void** address, size_t bytes) {
  note("cuMemAlloc " + std::to_string(bytes));
  if (const int status = outcome("cuMemAlloc_v2")) return status;
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*address, 0xff, bytes);  // as memory is that was somebody's: not zero
  fake.allocations[*address] = bytes;
  device::allocate(*address, bytes);
  return 0;
}

int cuMemFree_v2(void* address) {
  if (const int status = outcome("cuMemFree_v2")) return status;
  if (!fake.allocations.erase(address)) return kInvalidValue;
  device::free(address);
  std::free(address);
  return 0;
}

int cuMemGetInfo_v2(size_t* available, size_t* total) {
  return *available = *total = size_t{1} << 34, outcome("cuMemGetInfo_v2");
}
int cuMemsetD8_v2(void* address, unsigned char value, size_t bytes) {
  std::memset(address, value, bytes);
  return outcome("cuMemsetD8_v2");
}
int cuMemsetD8Async(void* address, unsigned char value, size_t bytes, void*) {
  return cuMemsetD8_v2(address, value, bytes);
}
int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }
int cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }

// A copy is at once, so one inside a capture would be missing in the graph.
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void*) {
  note("cuMemcpyHtoDAsync");
  if (const int status = outcome("cuMemcpyHtoDAsync_v2")) return status;
  return fake.is_capturing ? 900 : cuMemcpyHtoD_v2(to, from, bytes);
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void*) {
  note("cuMemcpyDtoHAsync");
  if (const int status = outcome("cuMemcpyDtoHAsync_v2")) return status;
  return fake.is_capturing ? 900 : cuMemcpyDtoH_v2(to, from, bytes);
}
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void*) {
  note("cuMemcpyDtoDAsync");
  if (const int status = outcome("cuMemcpyDtoDAsync_v2")) return status;
  return fake.is_capturing ? 900 : cuMemcpyDtoH_v2(to, from, bytes);
}
int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  if (const int status = outcome("cuMemHostAlloc")) return status;
  *address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return 0;
}
int cuMemFreeHost(void* address) { return std::free(address), 0; }

int cuStreamCreate(void** stream, unsigned) { return *stream = reinterpret_cast<void*>(2), outcome("cuStreamCreate"); }
int cuStreamDestroy_v2(void*) { return 0; }
int cuStreamSynchronize(void*) {
  note("cuStreamSynchronize");
  if (fake.is_capturing) return 900;  // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
  device::synchronize();
  return outcome("cuStreamSynchronize");
}

int cuStreamBeginCapture_v2(void*, int) {
  note("cuStreamBeginCapture");
  fake.captured.clear();
  fake.is_capturing = true;
  return 0;
}

int cuStreamEndCapture(void*, void** graph) {
  note("cuStreamEndCapture");
  fake.is_capturing = false;
  *graph = new std::vector<Recorded>(fake.captured);
  return 0;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  note("cuGraphInstantiate");
  *executable = new std::vector<Recorded>(*static_cast<std::vector<Recorded>*>(graph));
  return 0;
}

int cuGraphGetNodes(void* graph, void**, size_t* count) {
  return *count = static_cast<std::vector<Recorded>*>(graph)->size(), 0;
}

int cuGraphLaunch(void* executable, void*) {
  note("cuGraphLaunch");
  for (const Recorded& each : *static_cast<std::vector<Recorded>*>(executable))
    if (const int status = run(each)) return status;
  return outcome("cuGraphLaunch");
}

int cuGraphDestroy(void* graph) { return note("cuGraphDestroy"), delete static_cast<std::vector<Recorded>*>(graph), 0; }
int cuGraphExecDestroy(void* graph) {
  note("cuGraphExecDestroy");
  return delete static_cast<std::vector<Recorded>*>(graph), 0;
}

using Clock = std::chrono::steady_clock;
int cuEventCreate(void** event, unsigned) { return *event = new Clock::time_point, outcome("cuEventCreate"); }
int cuEventRecord(void* event, void*) {
  *static_cast<Clock::time_point*>(event) = Clock::now();
  return outcome("cuEventRecord");
}
int cuEventSynchronize(void*) { return outcome("cuEventSynchronize"); }
int cuEventDestroy_v2(void* event) {
  return delete static_cast<Clock::time_point*>(event), outcome("cuEventDestroy_v2");
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  const auto span = *static_cast<Clock::time_point*>(end) - *static_cast<Clock::time_point*>(start);
  *milliseconds = std::chrono::duration<float, std::milli>(span).count();
  return 0;
}

}  // extern "C"
