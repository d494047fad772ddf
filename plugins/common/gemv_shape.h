// The shape of every GEMV's blocks, for kernels and for those who launch them.
#pragma once

namespace edge_awq {

constexpr int kGemvOutputs = 16;   // values of N per block
constexpr int kGemvThreads = 256;  // per block
constexpr int kGemvWarps = kGemvThreads / 32;
constexpr int kGemvMaxRows = 8;    // of x

constexpr int kNormedPitch = 16;              // rows of x in shared memory are multiples of so many vectors of 16 bytes
constexpr int kNormedMaxBytes = 64 * 1024;    // all rows together

}  // namespace edge_awq
