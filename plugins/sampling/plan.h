// In what grid the greedy choice is made, or why it is not. Host code, without CUDA.
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

}  // namespace edge_awq
