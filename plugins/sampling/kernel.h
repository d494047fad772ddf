// The choice of the next token on the device, greedy or drawn, as its callers see it.
#pragma once

#include "../common/half.h"

namespace edge_awq {

// Device pointers; the kernel's only parameter, by value.
struct ArgmaxArguments {
  const float* logits;       // [rows, size]
  int64_t* tokens;           // [rows], where each row's largest logit is: the first if several, the first NaN if any;
                             // and 2^32 more if that one is not finite
  unsigned long long* best;  // [rows, splits]
  unsigned* finished;        // [rows], zero before the first launch and after each
  int rows, size;
  int splits;                // blocks per row
};

constexpr int kArgmaxThreads = 256;  // per block

// What SampleArguments::settings holds, with the meaning that edge_awq/runner/sampling.py gives it. Here nobody can
// refuse a value, so every one has a meaning.
enum SampleSetting {
  kTemperature,  // divides the logits; below 2^-100, or NaN: the likeliest token
  kTopK,         // only the k largest logits and their equals; below 1, or NaN: off
  kTopP,         // only the most probable tokens, as few as reach this; 1 and more, or NaN: off
  kMinP,         // only tokens at least this fraction as probable as the best; 0 and less, or NaN: off; at most 1
  kSampleSettings
};

// Device pointers; the kernel's only parameter, by value. The rows are successive tokens of one sequence: row i is drawn
// with the random number of step + i, so many rows at once are drawn as they are one by one.
struct SampleArguments {
  const float* logits;         // [rows, size]; -inf rules a token out
  const float* settings;       // [kSampleSettings]
  const int64_t* seed;         // [1]
  const int64_t* step;         // [1], which the caller counts
  int64_t* tokens;             // [rows]; as argmax's without a temperature, and if the largest is not finite
  unsigned long long* lowest;  // [rows], or null: the last token that could be drawn, (key << 32 | index), see keys.h;
                               // untouched where nothing is drawn
  unsigned long long* best;    // [rows, splits]
  unsigned* finished;          // [rows], zero before the first launch and after each
  int rows, size;
  int splits;                  // blocks per row
};

constexpr int kSampleThreads = 512;       // per block
constexpr int kSampleMostSize = 1 << 20;  // so that no sum of weights passes 64 bits

}  // namespace edge_awq
