// What stands in for a GPU in fake_driver.cpp: a machine that executes the PTX of the modules that it is given.
#pragma once

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "../fake_launch.h"
#include "arithmetic.h"
#include "collective.h"
#include "moves.h"

namespace device {

constexpr int kComputeCapability = 100;  // newer than any machine code of the library

struct State {
  ptx::GlobalMemory global;
  ptx::Machine machine{global};
  ptx::Opcodes opcodes;
  std::map<std::string, std::unique_ptr<ptx::Kernel>> kernels;
  std::set<std::string> executed, loaded;
  std::string fault;

  State() {
    ptx::add_arithmetic(opcodes);
    ptx::add_collective(opcodes);
    ptx::add_moves(opcodes);
  }

  // Which kernels have run, a line each, for tests that start another process.
  ~State() {
    if (const char* const log = std::getenv("EDGE_AWQ_PTX_LOG")) {
      std::ofstream file(log, std::ios::app);
      for (const std::string& kernel : executed) file << kernel << "\n";
    }
  }
};

inline State state;

inline std::string fault() { return state.fault; }

// Text that has been loaded before has the same kernels.
inline int load(const char* image) {
  const std::string text(image);
  if (state.loaded.count(text)) return 0;
  try {
    const ptx::Module module = ptx::Parser(text).module();
    for (const auto& [name, entry] : module.entries)
      state.kernels[name] = std::make_unique<ptx::Kernel>(ptx::decoded(module, entry, state.opcodes));
  } catch (const ptx::Unknown& unknown) {
    state.fault = unknown.what();
    return kInvalidPtx;
  }
  state.loaded.insert(text);
  return 0;
}

inline bool has(const std::string& kernel) { return state.kernels.count(kernel) != 0; }
inline void allocate(const void* begin, size_t bytes) { state.global.allocate(reinterpret_cast<uint64_t>(begin), bytes); }
inline void free(const void* begin) { state.global.free(reinterpret_cast<uint64_t>(begin)); }
inline void synchronize() { state.global.synchronize(); }

inline int refused(int status, const std::string& why) {
  state.fault = why;
  return status;
}

inline int run(const Recorded& recorded, unsigned schedule, bool rounds_once, const HasRoom& has_room) {
  const ptx::Kernel& kernel = *state.kernels.at(recorded.kernel);
  const unsigned most = kernel.most_threads[0];
  if (!has_room(kernel.static_shared)) return refused(kInvalidValue, "too much shared memory");
  if (most && recorded.threads > most)
    return refused(kOutOfResources, std::to_string(recorded.threads) + " threads of " + std::to_string(most));
  if (kernel.parameter_bytes > kMostArgumentBytes)
    return refused(kInvalidValue, "more parameters than the driver copies");
  ptx::Launch launch{&kernel, recorded.blocks, recorded.threads, recorded.shared_bytes, schedule, {}, false, false};
  launch.parameters.assign(recorded.arguments.bytes, recorded.arguments.bytes + kernel.parameter_bytes);
  launch.is_dependent = recorded.is_dependent;
  launch.rounds_once = rounds_once;
  try {
    state.executed.insert(kernel.name);
    state.machine.run(launch);
  } catch (const ptx::Fault& fault) {
    return refused(kLaunchFailed, fault.what());
  }
  return 0;
}

}  // namespace device
