// In what grid a token is chosen, or why it is not. Host code, without CUDA.
#pragma once

#include "../common/launch.h"
#include "kernel.h"

namespace edge_awq {

inline Launch plan(const ArgmaxArguments& a) {
  if (a.rows < 1) return refused("rows = %d", a.rows);
  if (a.size < 1) return refused("size = %d", a.size);
  if (a.splits < 1 || a.splits > 1024) return refused("splits = %d, not 1 to 1024", a.splits);
  if (!a.logits || !a.tokens || !a.best || !a.finished) return refused("a tensor is null");
  return {"argmax", static_cast<unsigned>(a.rows) * static_cast<unsigned>(a.splits), kArgmaxThreads, ""};
}

inline Launch plan(const SampleArguments& a) {
  if (a.rows < 1) return refused("rows = %d", a.rows);
  if (a.size < 1 || a.size > kSampleMostSize) return refused("size = %d, not 1 to %d", a.size, kSampleMostSize);
  if (a.splits < 1 || a.splits > 1024) return refused("splits = %d, not 1 to 1024", a.splits);
  if (!a.logits || !a.settings || !a.seed || !a.step || !a.tokens || !a.best || !a.finished)
    return refused("a tensor is null");
  return {"sample", static_cast<unsigned>(a.rows) * static_cast<unsigned>(a.splits), kSampleThreads, ""};
}

}  // namespace edge_awq
