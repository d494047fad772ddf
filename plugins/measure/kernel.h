// How fast memory can be read at all, as its callers see it: the ceiling that other kernels are measured against.
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value.
struct ReadArguments {
  const uint32_t* data;  // [vectors * 4]
  uint32_t* sums;        // [blocks * kReadThreads], sums modulo 2^32 of what each thread has read
  int64_t vectors;       // of 16 bytes
  int blocks;
};

constexpr int kReadThreads = 256;

}  // namespace edge_awq
