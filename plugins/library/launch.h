// A planned launch, carried out on the device of the current context.
#pragma once

#include <string>

#include "../common/launch.h"

namespace edge_awq {

// Whether kernels on sm_90 and newer may start while the kernel before them ends: programmatic dependent launch.
// Off unless EDGE_AWQ_PDL=1 is in the environment or this is called.
void set_dependent_launch(bool allowed);

// Returns why there was no launch, or an empty text. `arguments` is the kernel's only parameter.
std::string launch_planned(const Launch& planned, const void* arguments, void* stream);

// The same for what plan() made.
template <class Arguments>
std::string launch(const Launch& planned, const Arguments& arguments, void* stream) {
  return launch_planned(planned, &arguments, stream);
}

}  // namespace edge_awq
