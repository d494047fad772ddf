// A kernel on the CPU behind a C function, for tests: the launch is planned as for a GPU and run by fibers.h.
//
// <op>/harness.inc says EDGE_AWQ_HARNESS once per plan; harness.cpp includes these. The kernels need no list: the one
// that is planned is looked up by its name, as on a GPU.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "fibers.h"
#include "launch.h"

namespace harness {

struct Message {
  char* text;
  size_t size;
};

inline int fail(Message message, const std::string& reason) {
  std::snprintf(message.text, message.size, "%s", reason.c_str());
  return 1;
}

// An entry point of the library this is compiled into, or null.
inline void* find_kernel(const char* name) {
  static void* const library = [] {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&find_kernel), &self);
    return dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }();
  return dlsym(library, name);
}

// Returns 0, or 1 with the reason in `message`.
template <class Arguments>
int launch(const edge_awq::Launch& planned, const Arguments& arguments, unsigned schedule, Message message) {
  if (!planned.refusal.empty()) return fail(message, planned.refusal);
  const auto kernel = reinterpret_cast<void (*)(Arguments)>(find_kernel(planned.kernel));
  if (!kernel) return fail(message, std::string("no kernel is called ") + planned.kernel);
  fibers::state.dynamic_bytes = planned.shared_bytes;
  const auto outcome = fibers::launch(planned.blocks, planned.threads, schedule, [&] { kernel(arguments); });
  if (fibers::state.overrun)
    return fail(message, planned.kernel + (": uses " + std::to_string(fibers::state.overrun)) +
                             " bytes of dynamic shared memory, not " + std::to_string(planned.shared_bytes));
  if (!fibers::races::found().empty()) return fail(message, planned.kernel + (": " + fibers::races::found()));
  if (outcome == fibers::Outcome::kFinished) return 0;
  return fail(message, std::string(planned.kernel) + (outcome == fibers::Outcome::kDeadlock
                                                          ? ": threads wait for others that never come"
                                                          : ": a warp exchanges values after lanes have returned"));
}

}  // namespace harness

// int edge_awq_NAME(arguments, schedule, message, size) for what `plan` launches; see launch() and fibers::Schedule.
#define EDGE_AWQ_HARNESS(name, Arguments, plan)                                                              \
  extern "C" int edge_awq_##name(const edge_awq::Arguments* arguments, unsigned schedule, char* text, size_t size) { \
    return harness::launch(edge_awq::plan(*arguments), *arguments, schedule, {text, size});                   \
  }

// RESULT edge_awq_NAME(arguments): what memory a plan needs.
#define EDGE_AWQ_SIZE(Result, name, Arguments, size_of)                               \
  extern "C" Result edge_awq_##name(const edge_awq::Arguments* arguments) {           \
    return edge_awq::size_of(*arguments);                                             \
  }
