#include "log.h"

#include <dlfcn.h>

#include <cstdio>

namespace edge_awq {
namespace {

// TensorRT's ILogger: the first entry of its table of functions is log(severity, text), in every version.
struct Logger {
  virtual void log(int severity, const char* text) noexcept = 0;

 protected:
  ~Logger() = default;
};
constexpr int kErrorSeverity = 1;

// The logger of the TensorRT that this process has loaded, or null. The C function getLogger() has been there since 8;
// ILoggerFinder, which setLoggerFinder() hands over, has another table of functions in 11 than in 10.
Logger* find_logger() {
  for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer_lean.so.11",
                           "libnvinfer_lean.so.10"}) {
    void* const library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) continue;
    const auto get_logger = reinterpret_cast<Logger* (*)()>(dlsym(library, "getLogger"));
    Logger* const logger = get_logger ? get_logger() : nullptr;
    dlclose(library);
    if (logger) return logger;
  }
  return nullptr;
}

thread_local std::string last;

}  // namespace

int fail(const std::string& text) {
  last = text;
  const std::string line = "edge-awq: " + text;
  if (Logger* const logger = find_logger()) {
    logger->log(kErrorSeverity, line.c_str());
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  return 1;
}

int report(const char* where, const std::string& reason) {
  return reason.empty() ? 0 : fail(std::string(where) + ": " + reason);
}

const char* last_error() { return last.c_str(); }

}  // namespace edge_awq
