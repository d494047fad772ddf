// What surrounds a product with a weight matrix, whatever the weights' format: a norm before it, and what is done to
// its results on their way to memory, so that a layer needs few launches.
//
//   z = norm(x) @ W.T + bias
//   y = activation(z) * act_scale + residual
//
// Gated: W is [gate; up], each [N / 2, K], and y = activation(z[:, :N / 2]) * z[:, N / 2:] * act_scale + residual.
#pragma once

#include "half.h"

namespace edge_awq {

enum class NormKind : int { kNone, kRms, kLayer };

enum class Activation : int { kNone, kRelu, kGelu, kGeluTanh, kSilu };  // kGelu is the one with erf

// Device pointers and shapes; a format's arguments begin with these. Outputs is N, or N / 2 where gated.
struct Linear {
  const Half* x;             // [rows, K]
  const float* norm_weight;  // [K], or null without a norm
  const float* norm_bias;    // [K], or null; kLayer only
  const Half* bias;          // [N], or null
  const float* act_scale;    // [outputs], or null: what AWQ divides the next weights' columns by
  const Half* residual;      // [rows, outputs], or null; may be y itself
  Half* y;                   // [rows, outputs]
  float* logits;             // [rows, outputs], written instead of y: a head's results need more bits; or null
  float* partial;            // sums of blocks that share outputs, if splits > 1; see partial_floats() in plan.h
  unsigned* finished;        // as many counters as counters() says, zero before the first launch and after each
  int rows, K, N;
  NormKind norm;
  float norm_epsilon;
  Activation activation;
  int gated;                 // 0 or 1
  int splits = 1;            // blocks that share outputs, each with its part of K; 1 for GEMVs, see best_splits()
};

}  // namespace edge_awq
