#include "launch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "modules.h"

namespace edge_awq {
namespace {

constexpr int kFirstWithDependentLaunch = 90;

std::atomic<bool>& dependent_launch() {
  static std::atomic<bool> allowed = [] {
    const char* const value = std::getenv("EDGE_AWQ_PDL");
    return value && std::strcmp(value, "1") == 0;
  }();
  return allowed;
}

std::string describe(const Launch& planned) {
  return " (" + std::string(planned.kernel) + ", " + std::to_string(planned.blocks) + " blocks of " +
         std::to_string(planned.threads) + " threads, " + std::to_string(planned.shared_bytes) + " shared bytes)";
}

int launch_dependent(Handle function, const Launch& planned, void** parameters, void* stream) {
  LaunchAttribute attribute{};
  attribute.id = kProgrammaticStreamSerialization;
  attribute.value = 1;
  const LaunchConfig config{
      {planned.blocks, 1, 1}, {planned.threads, 1, 1}, planned.shared_bytes, stream, &attribute, 1};
  return driver().launch_with(&config, function, parameters, nullptr);
}

}  // namespace

void set_dependent_launch(bool allowed) { dependent_launch() = allowed; }

std::string launch_planned(const Launch& planned, const void* arguments, void* stream) {
  if (!planned.refusal.empty()) return planned.refusal;
  Handle function = nullptr;
  Device device;
  if (std::string reason = find_kernel(planned.kernel, planned.shared_bytes, function, device); !reason.empty())
    return reason + describe(planned);
  const Driver& d = driver();
  void* parameters[] = {const_cast<void*>(arguments)};
  const bool is_dependent =
      planned.is_dependent && dependent_launch() && d.launch_with && device.compute_capability >= kFirstWithDependentLaunch;
  const int status = is_dependent ? launch_dependent(function, planned, parameters, stream)
                                  : d.launch(function, planned.blocks, 1, 1, planned.threads, 1, 1,
                                             planned.shared_bytes, stream, parameters, nullptr);
  if (status) return driver_error(is_dependent ? "cuLaunchKernelEx" : "cuLaunchKernel", status) + describe(planned);
  return "";
}

}  // namespace edge_awq
