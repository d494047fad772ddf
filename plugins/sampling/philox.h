// Philox4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3): random words as a function of a
// counter and a key, so that nothing has to be remembered between launches.
#pragma once

#include "../common/device.h"

namespace edge_awq {

__device__ __forceinline__ Vector philox(Vector counter, uint32_t key0, uint32_t key1) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const unsigned long long left = 0xd2511f53ull * counter.word[0], right = 0xcd9e8d57ull * counter.word[2];
    counter = {static_cast<uint32_t>(right >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(right),
               static_cast<uint32_t>(left >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(left)};
    key0 += 0x9e3779b9u;  // Weyl sequences: the golden ratio, and the square root of 3 less 1
    key1 += 0xbb67ae85u;
  }
  return counter;
}

}  // namespace edge_awq
