// The shape of every GEMV's blocks, for kernels and for those who launch them.
#pragma once

namespace edge_awq {

constexpr int kGemvOutputs = 16;   // values of N per block
constexpr int kGemvThreads = 256;  // per block
constexpr int kGemvWarps = kGemvThreads / 32;
constexpr int kGemvMaxRows = 8;    // of x

// Rows of x in shared memory: they are multiples of so many vectors of 16 bytes. All rows together have at most
// kSharedRowsMaxBytes, where a norm has to be there; where it need not, as many as leave room for two blocks on the GPUs
// with the least, 100 KiB, beside 9 KiB of static shared memory and 1 KiB of CUDA's for each.
constexpr int kSharedRowPitch = 16;
constexpr int kSharedRowsMaxBytes = 64 * 1024;
constexpr int kSharedRowsGoodBytes = 40 * 1024;

}  // namespace edge_awq
