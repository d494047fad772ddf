// A launch as fake_driver.cpp records it.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace device {

constexpr int kInvalidValue = 1, kInvalidPtx = 218, kOutOfResources = 701, kLaunchFailed = 719;
constexpr size_t kMostArgumentBytes = 320;

struct Arguments {  // larger than any kernel's: what lies behind them is copied too, and not read
  unsigned char bytes[kMostArgumentBytes];
};

struct Recorded {
  std::string kernel;
  unsigned blocks, threads, shared_bytes;
  Arguments arguments;
  void (*host)(void*) = nullptr;  // in a kernel's place: a function of the host's, and what it is given
  void* given = nullptr;
  bool is_dependent = false;  // may begin while the launch before ends
};

using HasRoom = std::function<bool(size_t static_bytes)>;  // whether a device would launch it, with static shared memory

}  // namespace device
